/* Self-attention in halves, each head of each utterance by itself, up to 32 queries at a time. */
#ifndef SENSEVOICE_ATTENTION_H
#define SENSEVOICE_ATTENTION_H

#include <float.h>
#include <string.h>

#include "call.h"
#include "halves.h"

/* Whole numbers are as large as lets the sums of their products be so. */
enum { MOST_OF_VALUES = 2047 };

INLINE float most_of_keys(int room) { return floorf(sqrtf((float)INT32_MAX / (float)room)) - 1.0f; }

enum { QUERIES = PANEL_COLUMNS };

/* Where the tiles of one head of an utterance begin, in any of the three. */
static Half *head_of(const Call *call, Half *all, const Utterance *one, int head) {
    const size_t room = head_room_of(call->network), n_heads = call->network->n_heads;
    return all + (one->n_keys_before * n_heads + keys_of(one->n_frames) * head) * room * PARTS;
}

/* The units of its frames, likewise. */
static float *units_of(const Call *call, float *all, const Utterance *one, int head) {
    return all + one->n_keys_before * call->network->n_heads + keys_of(one->n_frames) * head;
}

/* Where pieces of 32 values of two frames go. A query's lie in a row of a tile. A key is a column: its
 * pairs lie one below the other, each beside the next frame's. Values of the two are a row of pairs. */
INLINE void put_queries(const float *const pieces[2], const float *per_unit, int frame, int step,
                        int room, Half *head) {
    Half *to = head + ((size_t)(frame / 16) * (room / 32) + step) * HALF_TILE + frame % 16 * 32;
    for (int i = 0; i < 2; i++) put_halves(pieces[i], per_unit[i], to + 32 * i, HALF_PART);
}

INLINE void put_keys(const float *const pieces[2], const float *per_unit, int frame, int step,
                     int room, Half *head) {
    Half *to = head + ((size_t)(frame / 32) * (room / 32) + step) * 2 * HALF_TILE +
               frame % 32 / 16 * HALF_TILE + frame % 16 * 2;
    Half keys[2][PARTS * 32];
    for (int i = 0; i < 2; i++) put_halves(pieces[i], per_unit[i], keys[i], 32);
    for (int part = 0; part < PARTS; part++, to += HALF_PART)
        for (int pair = 0; pair < 16; pair++) {
            uint32_t pairs[2];
            for (int i = 0; i < 2; i++) memcpy(pairs + i, keys[i] + part * 32 + 2 * pair, 4);
            memcpy(to + pair * 32, pairs, sizeof pairs);
        }
}

INLINE void put_values(const float *const pieces[2], const float *per_unit, int frame, int panel,
                       int n_padded, Half *head) {
    Half *to = head + ((size_t)panel * (n_padded / 32) + frame / 32) * 2 * HALF_TILE +
               frame % 32 / 2 * 32;
    for (int tile = 0; tile < 2; tile++)
        put_pairs(pieces[0] + 16 * tile, pieces[1] + 16 * tile, per_unit, to + tile * HALF_TILE);
}

/* 2^x for x <= 0, to seven digits: a polynomial of the fraction, put behind the exponent. */
INLINE float exp2_of(float x) {
    x = x < -126.0f ? -126.0f : x;
    const int whole = (int)(x - 0.5f);
    const float f = x - (float)whole;
    union {
        int32_t bits;
        float value;
    } power = {(whole + 127) * (1 << 23)};
    const float p = 0.0013333558f + f * 0.00015403530f;
    const float q = 0.24022651f + f * (0.05550411f + f * (0.009618129f + f * p));
    return (1.0f + f * (0.69314718f + f * q)) * power.value;
}

/* Shares times what their values are units of, and how many units these then are: as many as keep
 * the sum of products with numbers up to `MOST_OF_VALUES` in 32 bits. */
static float weigh(float *shares, const float *value_units, int n_padded) {
    const float most = INT16_MAX, most_of_all = 1e6f;
    float high = 0.0f, sum = 0.0f;
    for (int i = 0; i < n_padded; i++) {
        shares[i] *= value_units[i];
        sum += shares[i];
        high = shares[i] > high ? shares[i] : high;
    }
    return fminf(most / high, most_of_all / sum);
}

/* Shares of one row of scores, in row tiles; returns one over their sum. */
static float soften(float *scores, int n, int n_padded, float scale, const float *key_units,
                    const float *value_units, Half *out) {
    float sum = 0.0f, per_unit = 1.0f;
    if (HALVES_ARE_WHOLE)
        for (int i = 0; i < n; i++) scores[i] *= key_units[i];
    float high = scores[0];
    for (int i = n; i < n_padded; i++) scores[i] = -FLT_MAX;
    for (int i = 0; i < n_padded; i++) high = scores[i] > high ? scores[i] : high;
    for (int i = 0; i < n_padded; i++) sum += scores[i] = exp2_of((scores[i] - high) * scale);
    if (HALVES_ARE_WHOLE) per_unit = weigh(scores, value_units, n_padded);
    for (int at = 0; at < n_padded; at += HALF_STEP, out += HALF_TILE)
        put_halves(scores + at, per_unit, out, HALF_PART);
    return 1.0f / (sum * per_unit);
}

static void attend_block(Member *member, const Utterance *one, int head, int frame) {
    Call *call = member->call;
    const int size = call->network->size, head_size = head_size_of(call->network);
    const int room = head_room_of(call->network);
    const float log2_e = 1.44269504f, scale = log2_e / sqrtf((float)head_size);
    const int n = one->n_frames, n_padded = keys_of(n);
    const int n_left = rows_of(n) - frame, n_rows = n_left < QUERIES ? n_left : QUERIES;
    float *scores = call->scores + (size_t)member->rank * QUERIES * call->n_longest;
    Half *shares = call->shares + (size_t)member->rank * QUERIES * call->n_longest * PARTS;
    const Half *keys = head_of(call, call->key_panels, one, head);
    const Half *values = head_of(call, call->value_panels, one, head);
    Operands in = {
        .rows = head_of(call, call->query_tiles, one, head) + (size_t)frame * room * PARTS,
        .row_tile_bytes = TILE_ROWS * room * PARTS * sizeof(Half),
        .n_rows = n_rows,
        .n_steps = room / HALF_STEP,
    };
    for (int key = 0; key < n_padded; key += PANEL_COLUMNS) {
        in.panel = keys + (size_t)key * room * PARTS;
        product_half(in, scores + key, n_padded);
    }
    const float *query_units = units_of(call, call->query_units, one, head) + frame;
    const float *key_units = units_of(call, call->key_units, one, head);
    const float *value_units = units_of(call, call->value_units, one, head);
    float per_sum[QUERIES];
    for (int row = 0; row < n_rows; row++)
        per_sum[row] = soften(scores + (size_t)row * n_padded, n, n_padded,
                              scale * (HALVES_ARE_WHOLE ? query_units[row] : 1.0f), key_units,
                              value_units,
                              shares + (size_t)row / 16 * 16 * n_padded * PARTS + row % 16 * 32);
    in.rows = shares;
    in.row_tile_bytes = TILE_ROWS * n_padded * PARTS * sizeof(Half);
    in.n_steps = n_padded / HALF_STEP;
    float *out = call->context + (size_t)(one->first_row + frame) * size + head * head_size;
    float context[QUERIES * PANEL_COLUMNS] __attribute__((aligned(64)));
    for (int column = 0; column < head_size; column += PANEL_COLUMNS) {
        in.panel = values + (size_t)column * n_padded * PARTS;
        product_half(in, context, PANEL_COLUMNS);
        const int n_here = head_size - column < PANEL_COLUMNS ? head_size - column : PANEL_COLUMNS;
        for (int row = 0; row < n_rows; row++)
            for (int i = 0; i < n_here; i++)
                out[(size_t)row * size + column + i] =
                    context[row * PANEL_COLUMNS + i] * per_sum[row];
    }
}

/* A block is some queries of a head of an utterance; a panel of keys has as many frames. */
static void attend(Member *member) {
    const Call *call = member->call;
    const int n_heads = call->network->n_heads;
    Items blocks = items_of(member, n_heads * call->n_keys / QUERIES);
    for (int block; (block = take_item(&blocks)) >= 0;) {
        const Utterance *one = call->utterances;
        while (block >= n_heads * (one->n_keys_before + keys_of(one->n_frames)) / QUERIES) one++;
        const int n_of_head = keys_of(one->n_frames) / QUERIES;
        const int within = block - n_heads * one->n_keys_before / QUERIES;
        attend_block(member, one, within / n_of_head, within % n_of_head * QUERIES);
    }
    wait_for_all(member);
}

#endif
