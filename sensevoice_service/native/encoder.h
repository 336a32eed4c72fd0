/* The network as Python hands it over; its structures are repeated in native_network.py. */
#ifndef SENSEVOICE_ENCODER_H
#define SENSEVOICE_ENCODER_H

#include <stdatomic.h>
#include <stdint.h>

typedef struct {
    const void *panels; /* see tiles.h */
    const float *bias; /* of each column, as all that follow */
    const float *scales, *weight_sums; /* of int8, and sums of it */
    int32_t n_in, n_out;
} Linear;

typedef struct {
    const float *scale, *shift;
    int32_t size;
} Norm;

typedef struct {
    Norm norm1, norm2;
    Linear query_key_value, out, forward1, forward2;
    const float *taps; /* (n_taps, size), the residual in the middle one */
    int32_t changes_width;
} Block;

typedef struct {
    const Block *blocks;
    int32_t n_blocks, n_main_blocks;
    Norm after_norm, last_norm;
    Linear ctc;
    int32_t size, n_heads, n_taps, n_hidden;
} Network;

/* The cores that an engine's calls share: those of each, and all that one has if it is alone. */
typedef struct {
    int32_t n_each, n_all;
    atomic_int n_inside; /* calls under way */
    atomic_uint n_calls; /* those that have begun so far */
} Cores;

/* Whether this process may use the tile unit. */
int sensevoice_begin(void);

/* Of how many halves each weight is the sum; 0 for int8. */
int sensevoice_weight_parts(void);

/* Of the weights of one sign in a group of eight, see tiles_avx2.h; 0 where there is no bound. */
int sensevoice_highest_weight_sum(void);

/* Frames of utterances, (rows, size of the first block's first norm) with an even number of rows for
 * each, to the best ids (rows), the last norm's (rows, size) and logits (rows, n_out); each may be
 * NULL. A call that `has_followers` leaves cores for them until one has begun since there were
 * `n_calls_before`. 0 where there is no memory for it. */
int sensevoice_encode(const Network *network, Cores *cores, const float *x, const int32_t *n_frames,
                      int n_utterances, int has_followers, uint32_t n_calls_before,
                      int32_t *ids, float *hidden, float *logits);

#endif
