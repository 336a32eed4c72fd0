/* Tiles on the vectors of AVX2, for CPUs that have no instruction for int8 products (no VNNI).
 *
 * What there is multiplies unsigned by signed bytes and adds two neighbours in 16 bits, and then
 * adds two of these in 32. The second step is as dear as the first, so it is taken for four sums of
 * the first at once: eight products together must not leave 16 bits. That holds for levels up to
 * 181 and for weights of which those of one sign come to no more than 181 (181 * 181 < 2^15).
 */
#ifndef SENSEVOICE_TILES_AVX2_H
#define SENSEVOICE_TILES_AVX2_H

#include <immintrin.h>
#include <string.h>

typedef int16_t Half; /* a whole number of units, see halves.h */
enum { HALVES_ARE_WHOLE = 1, HIGHEST_LEVEL = 181, HIGHEST_WEIGHT_SUM = 181 };
enum { PANEL_STEPS = ALL_STEPS };

/* Two rows by a panel; more sums than that have no registers. */
enum { ROWS_AT_ONCE = 2, VECTORS = PANEL_COLUMNS / 8, GROUPS = LINE_BYTES / NEIGHBOUR_BYTES };
/* So that a panel's part stays in the first cache while all rows go by. */
enum { STEPS_AT_ONCE = 8 };

typedef __m256i Sums[ROWS_AT_ONCE][VECTORS];

/* The compiler would read weights again for every row, and put sums off until registers run out. */
#define HERE(vector) __asm__("" : "+x"(vector))

INLINE __m256i neighbours(const char *at) {
    int32_t four_bytes;
    memcpy(&four_bytes, at, sizeof four_bytes);
    return _mm256_set1_epi32(four_bytes);
}

INLINE __m256i weights(const char *panel, int group, int vector) {
    const char *tile = panel + vector / 2 * TILE_BYTES;
    __m256i read = _mm256_load_si256((const __m256i *)(tile + group * LINE_BYTES) + vector % 2);
    HERE(read);
    return read;
}

typedef __m256i Add(__m256i sum, __m256i left, __m256i right);

INLINE __m256i add_bytes(__m256i sum, __m256i left, __m256i right) {
    return _mm256_add_epi16(sum, _mm256_maddubs_epi16(left, right));
}

INLINE __m256i add_halves(__m256i sum, __m256i left, __m256i right) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(left, right));
}

/* Four bytes of each row by as many of each column. */
INLINE void add_group(const char *rows, const char *panel, int group, Add add, Sums sums) {
    const char *at = rows + group * NEIGHBOUR_BYTES;
    const __m256i left[] = {neighbours(at), neighbours(at + LINE_BYTES)};
#pragma GCC unroll 8
    for (int vector = 0; vector < VECTORS; vector++) {
        const __m256i right = weights(panel, group, vector);
#pragma GCC unroll 8
        for (int row = 0; row < ROWS_AT_ONCE; row++) {
            __m256i sum = add(sums[row][vector], left[row], right);
            HERE(sum);
            sums[row][vector] = sum;
        }
    }
}

/* One step along the sum, 64 bytes of each row. */
INLINE void step_int8(const char *rows, const char *panel, Sums sums) {
    enum { TOGETHER = 4 };
    for (int first = 0; first < GROUPS; first += TOGETHER) {
        Sums pairs = {{_mm256_setzero_si256()}};
#pragma GCC unroll 8
        for (int group = first; group < first + TOGETHER; group++)
            add_group(rows, panel, group, add_bytes, pairs);
#pragma GCC unroll 8
        for (int row = 0; row < ROWS_AT_ONCE; row++)
#pragma GCC unroll 8
            for (int vector = 0; vector < VECTORS; vector++)
                sums[row][vector] =
                    add_halves(sums[row][vector], pairs[row][vector], _mm256_set1_epi16(1));
    }
}

INLINE void step_half(const char *rows, const char *panel, Sums sums) {
    for (int group = 0; group < GROUPS; group++) add_group(rows, panel, group, add_halves, sums);
}

INLINE __m256i as_whole(__m256i sums) { return sums; }
INLINE __m256i as_float(__m256i sums) { return _mm256_castps_si256(_mm256_cvtepi32_ps(sums)); }

typedef void AddStep(const char *rows, const char *panel, Sums sums);
typedef __m256i Read(__m256i sums);

/* Some steps of two rows, onto what `out` has of those before them. */
INLINE void add_steps(const char *rows, const char *panel, int n_steps, int is_first, int is_last,
                      AddStep add_step, Read read, int32_t *out, int stride) {
    Sums sums;
    __m256i *kept[] = {(__m256i *)out, (__m256i *)(out + stride)};
    for (int row = 0; row < ROWS_AT_ONCE; row++)
        for (int vector = 0; vector < VECTORS; vector++)
            sums[row][vector] =
                is_first ? _mm256_setzero_si256() : _mm256_loadu_si256(kept[row] + vector);
    for (int step = 0; step < n_steps; step++)
        add_step(rows + step * TILE_BYTES, panel + step * 2 * TILE_BYTES, sums);
    for (int row = 0; row < ROWS_AT_ONCE; row++)
        for (int vector = 0; vector < VECTORS; vector++)
            _mm256_storeu_si256(kept[row] + vector,
                                is_last ? read(sums[row][vector]) : sums[row][vector]);
}

INLINE void multiply_tiles(Operands in, AddStep add_step, Read read, int32_t *out, int stride) {
    const char *ahead = in.ahead;
    const int n_pairs = (in.n_rows + 1) / ROWS_AT_ONCE;
    const int lines = (in.lines_ahead * STEPS_AT_ONCE + n_pairs - 1) / n_pairs;
    for (int first = 0; first < in.n_steps; first += STEPS_AT_ONCE) {
        const int is_last = in.n_steps - first <= STEPS_AT_ONCE;
        const int n_steps = is_last ? in.n_steps - first : STEPS_AT_ONCE;
        const char *panel = (const char *)in.panel + first * 2 * TILE_BYTES;
        for (int row = 0; row < in.n_rows; row += ROWS_AT_ONCE) {
            const char *rows = row_at(&in, row) + first * TILE_BYTES;
            add_steps(rows, panel, n_steps, first == 0, is_last, add_step, read,
                      out + row * stride, stride);
            for (int i = 0; i < lines; i++, ahead += LINE_BYTES) __builtin_prefetch(ahead, 0, 2);
        }
    }
}

/* By themselves they have all registers. */
static __attribute__((noinline)) void product_int8(Operands in, int32_t *out, int stride) {
    multiply_tiles(in, step_int8, as_whole, out, stride);
}

static __attribute__((noinline)) void product_half(Operands in, float *out, int stride) {
    multiply_tiles(in, step_half, as_float, (int32_t *)out, stride);
}

#endif
