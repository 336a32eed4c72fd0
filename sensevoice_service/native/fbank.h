/* Features of one waveform as Python hands over what they are made with; see frontend.py. */
#ifndef SENSEVOICE_FBANK_H
#define SENSEVOICE_FBANK_H

#include <stdint.h>

enum {
    WINDOW = 400, /* samples */
    SHIFT = 160,
    FFT_SIZE = 512,
    N_BINS = FFT_SIZE / 2 + 1,
    N_BANDS = 80,
    STACKED = 7, /* frames, one in SKIPPED, beginning LEFT ahead of it */
    SKIPPED = 6,
    LEFT = 3
};

typedef struct {
    const float *window;          /* (WINDOW) */
    const float *cosines, *sines; /* (FFT_SIZE / 2), of 2 pi k / FFT_SIZE */
    const int32_t *first_bins, *n_bins; /* (N_BANDS), of each band's triangle */
    const float *weights;               /* of those bins, band after band */
    const float *shift, *scale;         /* (STACKED * N_BANDS), of CMVN */
    float gain, preemphasis, floor;
} Fbank;

/* Samples (n_samples), at least a window, to features (ceil(n_frames / SKIPPED), STACKED *
 * N_BANDS). 0 where there is no memory for it. */
int sensevoice_features(const Fbank *fbank, const float *samples, int64_t n_samples, float *out);

#endif
