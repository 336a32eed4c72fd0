/* Tiles on the tile unit, AMX: int8 and bf16. */
#ifndef SENSEVOICE_TILES_AMX_H
#define SENSEVOICE_TILES_AMX_H

#include <immintrin.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

typedef uint16_t Half; /* bf16 */
enum { HALVES_ARE_WHOLE = 0, HIGHEST_LEVEL = 255, HIGHEST_WEIGHT_SUM = 0 };
/* 16 KiB of a panel, so that it stays in the first cache while all rows go by: rows alone come from
 * the second then, which is as fast as the tile unit wants them. */
enum { PANEL_STEPS = PARTS == 1 ? 8 : ALL_STEPS };

/* Linux asks for a process's word before its threads may hold tiles. */
static inline int tiles_permitted(void) {
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}

static inline void tiles_begin(void) {
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } shape;
    memset(&shape, 0, sizeof shape);
    shape.palette = 1;
    for (int tile = 0; tile < 8; tile++) {
        shape.row_bytes[tile] = 64;
        shape.rows[tile] = TILE_ROWS;
    }
    /* Some compilers' own function for it declares eight bytes of the shape as read, no more. */
    __asm__ volatile("ldtilecfg %0" : : "m"(shape));
}

static inline void tiles_end(void) { _tile_release(); }

/* Four sums of tiles: two row tiles, if there are as many, by the two of a panel. */
INLINE void zero_sums(void) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}

INLINE void load_sums(const char *from, int stride_bytes, int are_two) {
    _tile_loadd(0, from, stride_bytes);
    _tile_loadd(1, from + LINE_BYTES, stride_bytes);
    if (!are_two) return;
    _tile_loadd(2, from + TILE_ROWS * stride_bytes, stride_bytes);
    _tile_loadd(3, from + TILE_ROWS * stride_bytes + LINE_BYTES, stride_bytes);
}

INLINE void begin_sums(const char *from, int stride_bytes, int are_two, int adds) {
    /* A compiler does not see that tiles are read from memory: what was written is to be there. */
    __asm__ volatile("" : : : "memory");
    if (adds) load_sums(from, stride_bytes, are_two);
    else zero_sums();
}

INLINE void store_sums(char *to, int stride_bytes, int are_two) {
    _tile_stored(0, to, stride_bytes);
    _tile_stored(1, to + LINE_BYTES, stride_bytes);
    if (!are_two) return;
    _tile_stored(2, to + TILE_ROWS * stride_bytes, stride_bytes);
    _tile_stored(3, to + TILE_ROWS * stride_bytes + LINE_BYTES, stride_bytes);
}

/* Lines that will be wanted next are called from memory, a few at each step: all of them at the end
 * of a product would be too late for the one behind it. */
INLINE const char *called(const char *ahead, int n_lines) {
    for (int i = 0; i < n_lines; i++, ahead += LINE_BYTES) __builtin_prefetch(ahead, 0, 2);
    return ahead;
}

/* Each tile that is read takes part in two products. */
#define DEFINE_PRODUCT(name, value, multiply)                                                     \
    static inline void name(Operands in, value *out, int stride) {                                \
        const char *a = in.rows, *b = in.panel, *ahead = in.ahead;                                \
        const int stride_bytes = stride * (int)sizeof(value), are_two = in.n_rows > TILE_ROWS;    \
        begin_sums((const char *)out, stride_bytes, are_two, in.adds);                            \
        for (int step = 0; step < in.n_steps; step++, a += TILE_BYTES, b += 2 * TILE_BYTES) {     \
            _tile_loadd(4, a, LINE_BYTES);                                                        \
            _tile_loadd(6, b, LINE_BYTES);                                                        \
            multiply(0, 4, 6);                                                                    \
            _tile_loadd(7, b + TILE_BYTES, LINE_BYTES);                                           \
            multiply(1, 4, 7);                                                                    \
            if (are_two) {                                                                        \
                _tile_loadd(5, a + in.row_tile_bytes, LINE_BYTES);                                \
                multiply(2, 5, 6);                                                                \
                multiply(3, 5, 7);                                                                \
            }                                                                                     \
            ahead = called(ahead, in.lines_ahead);                                                \
        }                                                                                         \
        store_sums((char *)out, stride_bytes, are_two);                                           \
    }

DEFINE_PRODUCT(product_int8, int32_t, _tile_dpbusd)

#if PARTS == 1
DEFINE_PRODUCT(product_half, float, _tile_dpbf16ps)
#else

/* New rows, or new columns, by what there is of the other. Each tile is read when the one that it
 * takes the place of has had its two products. */
#define MULTIPLY_ROWS(part)                                                                       \
    _tile_loadd(4, a + (part) * TILE_BYTES, LINE_BYTES);                                          \
    _tile_dpbf16ps(0, 4, 6);                                                                      \
    _tile_dpbf16ps(1, 4, 7);                                                                      \
    if (are_two) {                                                                                \
        _tile_loadd(5, a + in.row_tile_bytes + (part) * TILE_BYTES, LINE_BYTES);                  \
        _tile_dpbf16ps(2, 5, 6);                                                                  \
        _tile_dpbf16ps(3, 5, 7);                                                                  \
    }                                                                                             \
    ahead = called(ahead, in.lines_ahead);

#define MULTIPLY_COLUMNS(part)                                                                    \
    _tile_loadd(6, b + (part) * TILE_BYTES, LINE_BYTES);                                          \
    _tile_dpbf16ps(0, 4, 6);                                                                      \
    if (are_two) _tile_dpbf16ps(2, 5, 6);                                                         \
    _tile_loadd(7, b + (PARTS + (part)) * TILE_BYTES, LINE_BYTES);                                \
    _tile_dpbf16ps(1, 4, 7);                                                                      \
    if (are_two) _tile_dpbf16ps(3, 5, 7);                                                         \
    ahead = called(ahead, in.lines_ahead);

/* Three bf16 have all bits of a float. Products of their pairs, the least first, so that from one
 * to the next a side keeps its tiles; the three pairs that are left out come to less than a float's
 * last bit. Henry, Tang, Heinecke, "Leveraging the bfloat16 Artificial Intelligence Datatype For
 * Higher-Precision Computations", 2019. */
static void product_half(Operands in, float *out, int stride) {
    const char *a = in.rows, *b = in.panel, *ahead = in.ahead;
    const int stride_bytes = stride * (int)sizeof(float), are_two = in.n_rows > TILE_ROWS;
    begin_sums((const char *)out, stride_bytes, are_two, in.adds);
    for (int step = 0; step < in.n_steps; step++) {
        _tile_loadd(6, b + 2 * TILE_BYTES, LINE_BYTES);
        _tile_loadd(7, b + (PARTS + 2) * TILE_BYTES, LINE_BYTES);
        MULTIPLY_ROWS(0)
        MULTIPLY_COLUMNS(1)
        MULTIPLY_ROWS(1)
        MULTIPLY_COLUMNS(0)
        MULTIPLY_ROWS(2)
        MULTIPLY_ROWS(0)
        a += PARTS * TILE_BYTES;
        b += 2 * PARTS * TILE_BYTES;
    }
    store_sums((char *)out, stride_bytes, are_two);
}
#endif

#endif
