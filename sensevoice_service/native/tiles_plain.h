/* Tiles in plain C, for any CPU: slow, and what the tests compare with. */
#ifndef SENSEVOICE_TILES_PLAIN_H
#define SENSEVOICE_TILES_PLAIN_H

typedef uint16_t Half; /* bf16 */
enum { HALVES_ARE_WHOLE = 0, HIGHEST_LEVEL = 255, HIGHEST_WEIGHT_SUM = 0 };
enum { PANEL_STEPS = ALL_STEPS };

/* The sum of a number's parts, which is a float. */
static inline float number_at(const Half *at) {
    float sum = 0.0f;
    for (int part = PARTS - 1; part >= 0; part--) sum += widened(at[part * TILE_BYTES / 2]);
    return sum;
}

#define INT8_TERM(a, b) ((int32_t) * (a) * *(b))
#define HALF_TERM(a, b) (number_at(a) * number_at(b))

#define DEFINE_PRODUCT(name, value, left, right, together, parts, term)                           \
    static inline void name(Operands in, value *out, int stride) {                                \
        enum { WIDTH = 64 / sizeof(left), TILE = 16 * WIDTH * parts };                            \
        for (int row = 0; row < in.n_rows; row++)                                                 \
            for (int column = 0; column < PANEL_COLUMNS; column++) {                              \
                const char *tiles = (const char *)in.rows + row / 16 * in.row_tile_bytes;         \
                const left *a = (const left *)tiles + row % 16 * WIDTH;                           \
                const right *b =                                                                  \
                    (const right *)in.panel + column / 16 * TILE + column % 16 * together;        \
                value sum = in.adds ? out[row * stride + column] : 0;                             \
                for (int step = 0; step < in.n_steps; step++, a += TILE, b += 2 * TILE)           \
                    for (int at = 0; at < WIDTH; at++)                                            \
                        sum += term(a + at, b + at / together * 16 * together + at % together);   \
                out[row * stride + column] = sum;                                                 \
            }                                                                                     \
    }

DEFINE_PRODUCT(product_int8, int32_t, uint8_t, int8_t, 4, 1, INT8_TERM)
DEFINE_PRODUCT(product_half, float, Half, Half, 2, PARTS, HALF_TERM)

#endif
