/* Products of tiles of 1 KiB, 16 rows of 64 bytes: on the tile unit of AMX, or in plain C.
 *
 * Intel, "Architecture Instruction Set Extensions Programming Reference", chapter 3. A tile of the
 * left side holds 16 rows of 64 bytes (or 32 bf16); one of the right side holds 16 columns, each
 * of its rows four (two) neighbours along the sum of every column. So 1 KiB is a tile of either.
 *
 * Layouts: "row tiles" are the tiles of 16 rows one after the other along the sum. A "panel" is 32
 * columns, two tiles side by side at each step along the sum.
 */
#ifndef SENSEVOICE_TILES_H
#define SENSEVOICE_TILES_H

#include <stddef.h>
#include <stdint.h>

enum { TILE_BYTES = 1024, TILE_ROWS = 16, PANEL_COLUMNS = 32, INT8_STEP = 64, BF16_STEP = 32 };

typedef uint16_t bf16;

/* One or two row tiles and a panel, and what will be wanted after them. */
typedef struct {
    const void *rows;
    ptrdiff_t row_tile_bytes; /* from the one to the other */
    int n_row_tiles, n_steps;
    const void *panel;
    const void *ahead;
    int lines_ahead; /* at each step */
} Operands;

#ifdef __AMX_INT8__

#include <immintrin.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

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
    _tile_loadconfig(&shape);
}

static inline void tiles_end(void) { _tile_release(); }

/* Four sums of tiles at once: each tile that is read takes part in two products. Meanwhile what
 * will be wanted next is called from memory, a few lines at each step: all of them at the end of a
 * product would be too late for the one behind it. */
#define DEFINE_PRODUCT(name, value, multiply)                                                     \
    static inline void name(Operands in, value *out, int stride) {                                \
        const char *a = in.rows, *b = in.panel, *ahead = in.ahead;                                \
        const int stride_bytes = stride * (int)sizeof(value), are_two = in.n_row_tiles == 2;      \
        _tile_zero(0);                                                                            \
        _tile_zero(1);                                                                            \
        _tile_zero(2);                                                                            \
        _tile_zero(3);                                                                            \
        for (int step = 0; step < in.n_steps; step++, a += TILE_BYTES, b += 2 * TILE_BYTES) {     \
            _tile_loadd(4, a, 64);                                                                \
            _tile_loadd(6, b, 64);                                                                \
            multiply(0, 4, 6);                                                                    \
            _tile_loadd(7, b + TILE_BYTES, 64);                                                   \
            multiply(1, 4, 7);                                                                    \
            if (are_two) {                                                                        \
                _tile_loadd(5, a + in.row_tile_bytes, 64);                                        \
                multiply(2, 5, 6);                                                                \
                multiply(3, 5, 7);                                                                \
            }                                                                                     \
            for (int i = 0; i < in.lines_ahead; i++, ahead += 64)                                 \
                __builtin_prefetch(ahead, 0, 2);                                                  \
        }                                                                                         \
        _tile_stored(0, out, stride_bytes);                                                       \
        _tile_stored(1, out + 16, stride_bytes);                                                  \
        if (!are_two) return;                                                                     \
        _tile_stored(2, out + 16 * stride, stride_bytes);                                         \
        _tile_stored(3, out + 16 * stride + 16, stride_bytes);                                    \
    }

DEFINE_PRODUCT(product_int8, int32_t, _tile_dpbusd)
DEFINE_PRODUCT(product_bf16, float, _tile_dpbf16ps)

#else

static inline int tiles_permitted(void) { return 1; }
static inline void tiles_begin(void) {}
static inline void tiles_end(void) {}

static inline float widened(bf16 value) {
    union {
        uint32_t bits;
        float value;
    } both = {(uint32_t)value << 16};
    return both.value;
}

#define INT8_TERM(a, b) ((int32_t)(a) * (b))
#define BF16_TERM(a, b) (widened(a) * widened(b))

#define DEFINE_PRODUCT(name, value, left, right, together, term)                                  \
    static inline void name(Operands in, value *out, int stride) {                                \
        enum { WIDTH = 64 / sizeof(left) };                                                       \
        for (int row = 0; row < in.n_row_tiles * TILE_ROWS; row++)                                \
            for (int column = 0; column < PANEL_COLUMNS; column++) {                              \
                const char *tiles = (const char *)in.rows + row / 16 * in.row_tile_bytes;         \
                const left *a = (const left *)tiles + row % 16 * WIDTH;                           \
                const right *b = (const right *)in.panel + column / 16 * 16 * WIDTH +             \
                                 column % 16 * together;                                          \
                value sum = 0;                                                                    \
                for (int step = 0; step < in.n_steps; step++, a += 16 * WIDTH, b += 32 * WIDTH)   \
                    for (int at = 0; at < WIDTH; at++)                                            \
                        sum += term(a[at], b[at / together * 16 * together + at % together]);     \
                out[row * stride + column] = sum;                                                 \
            }                                                                                     \
    }

DEFINE_PRODUCT(product_int8, int32_t, uint8_t, int8_t, 4, INT8_TERM)
DEFINE_PRODUCT(product_bf16, float, bf16, bf16, 2, BF16_TERM)

#endif
#endif
