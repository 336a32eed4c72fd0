/* One call of the network: the utterances, the memory that it works in, and the team at work. */
#ifndef SENSEVOICE_CALL_H
#define SENSEVOICE_CALL_H

#include <stdint.h>

#include "encoder.h"
#include "team.h"
#include "tiles.h"

/* Rows of activations as a product wants them, see linear_int8.h and linear_halves.h. */
typedef struct {
    void *tiles;
    float *scales, *zeros; /* of levels */
} Input;

typedef struct {
    int first_row, n_frames;
    int n_keys_before; /* of the utterances before it, each padded to whole panels */
} Utterance;

struct Call {
    const Network *network;
    Team team;
    int n_rows, n_keys, n_utterances; /* of all utterances: see `Utterance` */
    Utterance *utterances;
    const float *x;
    float *residual, *context, *values; /* (n_rows, size) */
    Sum *sums;                          /* of a product, see `sums_of` */
    Half *query_tiles, *key_panels, *value_panels;
    float *query_units, *key_units, *value_units; /* where halves are whole numbers, see halves.h */
    Input input;
    int n_longest;  /* keys of one utterance */
    float *scores;  /* of each member, (32, n_longest) */
    Half *shares;   /* the same, in row tiles */
    float *best;    /* of each member, (n_rows) */
    int32_t *best_ids;
    int32_t *ids;
    float *hidden, *logits;
};

static inline int padded(int n, int multiple) { return (n + multiple - 1) / multiple * multiple; }

static inline int smaller(int a, int b) { return a < b ? a : b; }

static inline int larger(int a, int b) { return a > b ? a : b; }

static inline int head_size_of(const Network *network) { return network->size / network->n_heads; }

/* Heads have room for whole tiles: behind their own values there are zeros. */
static inline int head_room_of(const Network *network) { return padded(head_size_of(network), 32); }

/* Frames are read in pairs, so each utterance begins at an even row. */
static inline int rows_of(int n_frames) { return padded(n_frames, 2); }

static inline int keys_of(int n_frames) { return padded(n_frames, PANEL_COLUMNS); }

/* Sums of a product lie panel by panel, all rows of one behind those of the other, so that a block
 * of 32 rows is written in one piece. The gap keeps panels off each other's lines of the cache. */
static inline size_t sums_of_panel(int n_rows) {
    enum { GAP = 16 };
    return (size_t)padded(n_rows, TILE_ROWS) * PANEL_COLUMNS + GAP;
}

static inline Sum *sums_of(const Call *call, int panel, int row) {
    return call->sums + panel * sums_of_panel(call->n_rows) + (size_t)row * PANEL_COLUMNS;
}

/* Those of the same columns in a row that is read soon. */
static inline void call_later_sums(const Sum *sums) {
    const Sum *later = sums + 2 * PANEL_COLUMNS;
    __builtin_prefetch(later);
    __builtin_prefetch(later + 16);
}

static inline size_t sums_bytes(int n_rows, int n_columns) {
    return sizeof(Sum) * (n_columns / PANEL_COLUMNS) * sums_of_panel(n_rows);
}

#endif
