/* Tiles in plain C, for any CPU: slow, and what the tests compare with. */
#ifndef SENSEVOICE_TILES_PLAIN_H
#define SENSEVOICE_TILES_PLAIN_H

typedef uint16_t Half; /* bf16 */
enum { HALVES_ARE_WHOLE = 0, HIGHEST_LEVEL = 255, HIGHEST_WEIGHT_SUM = 0 };

static inline float widened(Half value) {
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
        for (int row = 0; row < in.n_rows; row++)                                                 \
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
DEFINE_PRODUCT(product_half, float, Half, Half, 2, BF16_TERM)

#endif
