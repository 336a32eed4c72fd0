/* Numbers of 16 bits, of which attention is made, and linear layers if PARTS is given (see tiles.h):
 * bf16, or whole numbers of units.
 *
 * Whole numbers have a unit of their own for each frame of each head, so that the largest of its
 * values is the largest number.
 */
#ifndef SENSEVOICE_HALVES_H
#define SENSEVOICE_HALVES_H

#include <math.h>
#include <string.h>

#include "tiles.h"

/* Of a tile of one part, and of all. */
enum { HALF_PART = TILE_BYTES / sizeof(Half), HALF_TILE = PARTS * HALF_PART };

INLINE Half half_of(float value, float per_unit) {
    if (HALVES_ARE_WHOLE) return (Half)((int)(value * per_unit + 32768.5f) - 32768);
    union {
        float value;
        uint32_t bits;
    } both = {value};
    return (Half)((both.bits + 0x7fff + (both.bits >> 16 & 1)) >> 16);
}

/* 32 values of a row, or what it has left of them and zeros. */
static const float *piece_of(const float *row, int at, int n, float *spare) {
    if (n - at >= 32) return row + at;
    memset(spare, 0, 32 * sizeof(float));
    if (at < n) memcpy(spare, row + at, (n - at) * sizeof(float));
    return spare;
}

/* What 32 values are in halves, each part `stride` behind the one before it. */
INLINE void put_halves(const float *restrict values, float per_unit, Half *restrict to,
                       int stride) {
    for (int i = 0; i < HALF_STEP; i++) {
        float rest = values[i];
        for (int part = 0; part < PARTS; part++) {
            to[part * stride + i] = half_of(rest, per_unit);
            rest -= widened(to[part * stride + i]);
        }
    }
}

/* 16 values of two rows side by side. As whole words, of which the compiler makes vectors. */
INLINE void put_pairs(const float *restrict one, const float *restrict next, const float *per_unit,
                      Half *to) {
    uint32_t pairs[PARTS][16];
    for (int i = 0; i < 16; i++) {
        float rest = one[i], next_rest = next[i];
        for (int part = 0; part < PARTS; part++) {
            const Half half = half_of(rest, per_unit[0]), beside = half_of(next_rest, per_unit[1]);
            pairs[part][i] = (uint16_t)half | (uint32_t)(uint16_t)beside << 16;
            rest -= widened(half);
            next_rest -= widened(beside);
        }
    }
    for (int part = 0; part < PARTS; part++)
        memcpy(to + part * HALF_PART, pairs[part], sizeof pairs[part]);
}

/* How many units a value of one has, where the highest of `n` values has `most`. */
INLINE float per_unit_of(const float *values, int n, float most) {
    float high = 0.0f;
    if (!HALVES_ARE_WHOLE) return 1.0f;
    for (int i = 0; i < n; i++) high = fabsf(values[i]) > high ? fabsf(values[i]) : high;
    return high > 0.0f ? most / high : 1.0f;
}

#endif
