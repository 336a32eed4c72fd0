/* Tiles on the tile unit, AMX: int8 and bf16. */
#ifndef SENSEVOICE_TILES_AMX_H
#define SENSEVOICE_TILES_AMX_H

#include <immintrin.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

typedef uint16_t Half; /* bf16 */
enum { HALVES_ARE_WHOLE = 0, HIGHEST_LEVEL = 255, HIGHEST_WEIGHT_SUM = 0 };

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
        const int stride_bytes = stride * (int)sizeof(value), are_two = in.n_rows > TILE_ROWS;    \
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
DEFINE_PRODUCT(product_half, float, _tile_dpbf16ps)

#endif
