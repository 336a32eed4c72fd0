/* Numbers of 16 bits, of which attention is made: bf16, or whole numbers of units.
 *
 * Whole numbers have a unit of their own for each frame of each head, so that the largest of its
 * values is the largest number.
 */
#ifndef SENSEVOICE_HALVES_H
#define SENSEVOICE_HALVES_H

#include <math.h>

#include "tiles.h"

INLINE Half half_of(float value, float per_unit) {
    if (HALVES_ARE_WHOLE) return (Half)((int)(value * per_unit + 32768.5f) - 32768);
    union {
        float value;
        uint32_t bits;
    } both = {value};
    return (Half)((both.bits + 0x7fff + (both.bits >> 16 & 1)) >> 16);
}

/* How many units a value of one has, where the highest of `n` values has `most`. */
INLINE float per_unit_of(const float *values, int n, float most) {
    float high = 0.0f;
    if (!HALVES_ARE_WHOLE) return 1.0f;
    for (int i = 0; i < n; i++) high = fabsf(values[i]) > high ? fabsf(values[i]) : high;
    return high > 0.0f ? most / high : 1.0f;
}

#endif
