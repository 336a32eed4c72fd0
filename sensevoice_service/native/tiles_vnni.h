/* Tiles on the vectors of AVX-512 with VNNI: one instruction multiplies bytes, or halves, and adds
 * neighbours to what there is in 32 bits.
 *
 * Eight rows by a panel: a vector of weights that is read takes part in eight products, and sixteen
 * sums are enough for two such instructions to begin in each cycle.
 */
#ifndef SENSEVOICE_TILES_VNNI_H
#define SENSEVOICE_TILES_VNNI_H

#include <immintrin.h>
#include <string.h>

typedef int16_t Half; /* a whole number of units, see halves.h */
enum { HALVES_ARE_WHOLE = 1, HIGHEST_LEVEL = 255, HIGHEST_WEIGHT_SUM = 0 };
enum { PANEL_STEPS = ALL_STEPS };

enum { ROWS_AT_ONCE = 8, COLUMNS = 16, VECTORS = PANEL_COLUMNS / COLUMNS };

typedef __m512i Sums[ROWS_AT_ONCE][VECTORS];
typedef __m512i Add(__m512i sum, __m512i left, __m512i right);
typedef __m512i Read(__m512i sums);

#define UNROLL _Pragma("GCC unroll 16")

INLINE __m512i add_bytes(__m512i sum, __m512i left, __m512i right) {
    return _mm512_dpbusd_epi32(sum, left, right);
}

INLINE __m512i add_halves(__m512i sum, __m512i left, __m512i right) {
    return _mm512_dpwssd_epi32(sum, left, right);
}

INLINE __m512i as_whole(__m512i sums) { return sums; }
INLINE __m512i as_float(__m512i sums) { return _mm512_castps_si512(_mm512_cvtepi32_ps(sums)); }

INLINE __m512i neighbours(const char *at) {
    int32_t four_bytes;
    memcpy(&four_bytes, at, sizeof four_bytes);
    return _mm512_set1_epi32(four_bytes);
}

INLINE __m512i weights(const char *panel, int line, int vector) {
    __m512i read = _mm512_load_si512(panel + vector * TILE_BYTES + line * LINE_BYTES);
    __asm__("" : "+v"(read)); /* the compiler would read them again for every row */
    return read;
}

/* One step along the sum, 64 bytes of each row. */
INLINE void add_step(const char *rows, int n_rows, const char *panel, Add add, Sums sums) {
    UNROLL for (int line = 0; line < TILE_ROWS; line++) {
        __m512i right[VECTORS];
        UNROLL for (int vector = 0; vector < VECTORS; vector++)
            right[vector] = weights(panel, line, vector);
        UNROLL for (int row = 0; row < n_rows; row++) {
            const __m512i left = neighbours(rows + row * LINE_BYTES + line * NEIGHBOUR_BYTES);
            UNROLL for (int vector = 0; vector < VECTORS; vector++)
                sums[row][vector] = add(sums[row][vector], left, right[vector]);
        }
    }
}

/* Some rows that begin at `rows`; `in` says the rest. */
INLINE void multiply_rows(const char *rows, int n_rows, Operands in, Add add, Read read,
                          int32_t *out, int stride) {
    const char *panel = in.panel, *ahead = in.ahead;
    Sums sums;
    UNROLL for (int row = 0; row < n_rows; row++)
        UNROLL for (int vector = 0; vector < VECTORS; vector++)
            sums[row][vector] = _mm512_setzero_si512();
    for (int step = 0; step < in.n_steps; step++, rows += TILE_BYTES, panel += 2 * TILE_BYTES) {
        add_step(rows, n_rows, panel, add, sums);
        for (int i = 0; i < in.lines_ahead; i++, ahead += LINE_BYTES)
            __builtin_prefetch(ahead, 0, 2);
    }
    UNROLL for (int row = 0; row < n_rows; row++)
        UNROLL for (int vector = 0; vector < VECTORS; vector++)
            _mm512_storeu_si512(out + row * stride + vector * COLUMNS, read(sums[row][vector]));
}

INLINE void multiply_tiles(Operands in, Add add, Read read, int32_t *out, int stride) {
    const int n_blocks = (in.n_rows + ROWS_AT_ONCE - 1) / ROWS_AT_ONCE;
    in.lines_ahead = (in.lines_ahead + n_blocks - 1) / n_blocks;
    for (int row = 0; row < in.n_rows; row += ROWS_AT_ONCE, out += ROWS_AT_ONCE * stride) {
        const int n_left = in.n_rows - row;
        const char *rows = row_at(&in, row);
        /* Each of these has its number of rows compiled into it. */
        if (n_left > 4) multiply_rows(rows, ROWS_AT_ONCE, in, add, read, out, stride);
        else if (n_left > 2) multiply_rows(rows, 4, in, add, read, out, stride);
        else multiply_rows(rows, 2, in, add, read, out, stride);
        in.ahead = (const char *)in.ahead + in.n_steps * in.lines_ahead * LINE_BYTES;
    }
}

/* By themselves they have all registers. */
static __attribute__((noinline)) void product_int8(Operands in, int32_t *out, int stride) {
    multiply_tiles(in, add_bytes, as_whole, out, stride);
}

static __attribute__((noinline)) void product_half(Operands in, float *out, int stride) {
    multiply_tiles(in, add_halves, as_float, (int32_t *)out, stride);
}

#endif
