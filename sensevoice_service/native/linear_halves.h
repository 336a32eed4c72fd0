/* Linear layers in halves: in bf16, or in fp32 of which each number is the sum of three. */
#ifndef SENSEVOICE_LINEAR_HALVES_H
#define SENSEVOICE_LINEAR_HALVES_H

#include "call.h"
#include "halves.h"

_Static_assert(!HALVES_ARE_WHOLE, "linear layers are in bf16, not in whole numbers");

/* Of a sum in pieces of so many steps the rows of a whole chunk have room in the second cache. */
enum {
    MOST_STEPS = PARTS > 1 ? 16 : ALL_STEPS,
    STEP_VALUES = HALF_STEP,
    STEP_BYTES = PARTS * TILE_BYTES
};

static inline void product_linear(Operands in, Sum *out) { product_half(in, out, PANEL_COLUMNS); }

/* `n` values, and zeros behind them up to what layers are padded to. */
static void put_row(const float *values, int n, Input out, int row) {
    const int n_all = padded(n, SUM_PADDING);
    Half *to = (Half *)out.tiles + (size_t)(row / TILE_ROWS) * TILE_ROWS * n_all * PARTS +
               row % TILE_ROWS * HALF_STEP;
    float spare[HALF_STEP];
    for (int at = 0; at < n_all; at += HALF_STEP, to += HALF_TILE)
        put_halves(piece_of(values, at, n, spare), 1.0f, to, HALF_PART);
}

/* What a row's sums in one panel stand for. */
INLINE void read_sums(const Sum *restrict sums, const Linear *layer, int column, Input input,
                      int row, float *restrict out) {
    const float *restrict bias = layer->bias + column;
    (void)input, (void)row;
    call_later_sums(sums);
    for (int i = 0; i < PANEL_COLUMNS; i++) out[i] = sums[i] + bias[i];
}

#endif
