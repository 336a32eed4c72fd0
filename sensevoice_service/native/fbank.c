/* Kaldi's log-mel filter banks, stacked frames and CMVN, 8 or 16 windows at a time: each lane of a
 * vector is a window of its own, so that nothing is ever summed across lanes.
 */
#include "fbank.h"

#include <stdlib.h>
#include <string.h>

#include "lanes.h"

#define HALF (FFT_SIZE / 2)

enum { LANES = VECTOR_BYTES / sizeof(float) };
typedef float Lanes __attribute__((vector_size(VECTOR_BYTES)));
typedef int32_t Whole __attribute__((vector_size(VECTOR_BYTES)));

typedef struct {
    Lanes re[HALF], im[HALF]; /* of pairs of samples, and then of their transform */
    Lanes power[N_BINS];
    Lanes samples[WINDOW];
} Work;

static int reversed(int index) {
    int out = 0;
    for (int bit = 1; bit < HALF; bit <<= 1, index >>= 1) out = out << 1 | (index & 1);
    return out;
}

/* Windows without their mean, emphasised and tapered, pairs of samples as complex numbers in the
 * order that the transform begins with. The first sample follows upon itself. */
static void take_windows(const Fbank *fbank, const float *const starts[LANES], Work *work) {
    Lanes mean = {0};
    for (int i = 0; i < WINDOW; i++) {
        for (int lane = 0; lane < LANES; lane++) work->samples[i][lane] = starts[lane][i];
        work->samples[i] *= fbank->gain;
        mean += work->samples[i];
    }
    mean /= (float)WINDOW;
    Lanes before = work->samples[0] - mean;
    for (int i = 0; i < FFT_SIZE; i++) {
        Lanes value = {0};
        if (i < WINDOW) {
            const Lanes centred = work->samples[i] - mean;
            value = (centred - fbank->preemphasis * before) * fbank->window[i];
            before = centred;
        }
        Lanes *part = i % 2 ? work->im : work->re;
        part[reversed(i / 2)] = value;
    }
}

/* Cooley and Tukey's, in place, of HALF complex numbers in reversed order. */
static void transform(const Fbank *fbank, Work *work) {
    for (int half = 1; half < HALF; half *= 2)
        for (int first = 0; first < HALF; first += 2 * half)
            for (int i = 0; i < half; i++) {
                const int turn = i * (HALF / half), a = first + i, b = a + half;
                const float c = fbank->cosines[turn], s = -fbank->sines[turn];
                const Lanes re = work->re[b] * c - work->im[b] * s;
                const Lanes im = work->re[b] * s + work->im[b] * c;
                work->re[b] = work->re[a] - re;
                work->im[b] = work->im[a] - im;
                work->re[a] += re;
                work->im[a] += im;
            }
}

/* Of the real windows: what pairs of samples made one is taken apart. */
static void find_power(const Fbank *fbank, Work *work) {
    for (int k = 0; k <= HALF; k++) {
        const int a = k % HALF, b = (HALF - k) % HALF;
        const float c = k < HALF ? fbank->cosines[k] : -1.0f, s = k < HALF ? fbank->sines[k] : 0.0f;
        const Lanes even_re = 0.5f * (work->re[a] + work->re[b]);
        const Lanes even_im = 0.5f * (work->im[a] - work->im[b]);
        const Lanes odd_re = 0.5f * (work->im[a] + work->im[b]);
        const Lanes odd_im = 0.5f * (work->re[b] - work->re[a]);
        const Lanes re = even_re + c * odd_re + s * odd_im;
        const Lanes im = even_im + c * odd_im - s * odd_re;
        work->power[k] = re * re + im * im;
    }
}

/* Natural, to seven digits, of positive numbers: the exponent, and the series of the inverse
 * hyperbolic tangent for a mantissa near 1. */
static Lanes log_of(Lanes x) {
    Whole bits;
    memcpy(&bits, &x, sizeof bits);
    const Whole exponent = (bits - 0x3f3504f3) >> 23; /* the mantissa from the root of a half on */
    bits -= exponent << 23;
    Lanes mantissa;
    memcpy(&mantissa, &bits, sizeof mantissa);
    const Lanes t = (mantissa - 1.0f) / (mantissa + 1.0f), t2 = t * t;
    const Lanes series = 2.0f + t2 * (0.66666667f + t2 * (0.4f + t2 * (0.28571429f + t2 * 0.22222222f)));
    return __builtin_convertvector(exponent, Lanes) * 0.69314718f + t * series;
}

static void write_bands(const Fbank *fbank, const Work *work, int n_windows, float *out) {
    const float *weights = fbank->weights;
    for (int band = 0; band < N_BANDS; band++) {
        Lanes sum = {0};
        for (int i = 0; i < fbank->n_bins[band]; i++)
            sum += *weights++ * work->power[fbank->first_bins[band] + i];
        for (int lane = 0; lane < LANES; lane++)
            sum[lane] = sum[lane] > fbank->floor ? sum[lane] : fbank->floor;
        const Lanes logs = log_of(sum);
        for (int lane = 0; lane < n_windows; lane++) out[lane * N_BANDS + band] = logs[lane];
    }
}

static void stack(const Fbank *fbank, const float *bands, int64_t n_frames, float *out) {
    for (int64_t first = -LEFT; first + LEFT < n_frames; first += SKIPPED)
        for (int i = 0; i < STACKED; i++, out += N_BANDS) {
            const int64_t wanted = first + i < 0 ? 0 : first + i;
            const float *from = bands + (wanted < n_frames ? wanted : n_frames - 1) * N_BANDS;
            const float *shift = fbank->shift + i * N_BANDS, *scale = fbank->scale + i * N_BANDS;
            for (int band = 0; band < N_BANDS; band++)
                out[band] = (from[band] + shift[band]) * scale[band];
        }
}

int sensevoice_features(const Fbank *fbank, const float *samples, int64_t n_samples, float *out) {
    const int64_t n_frames = (n_samples - WINDOW) / SHIFT + 1;
    float *bands = malloc(sizeof(float) * n_frames * N_BANDS);
    Work *work = aligned_alloc(VECTOR_BYTES, sizeof(Work));
    if (bands && work) {
        for (int64_t frame = 0; frame < n_frames; frame += LANES) {
            const float *starts[LANES];
            const int n_windows = n_frames - frame < LANES ? (int)(n_frames - frame) : LANES;
            for (int lane = 0; lane < LANES; lane++)
                starts[lane] = samples + SHIFT * (frame + (lane < n_windows ? lane : 0));
            take_windows(fbank, starts, work);
            transform(fbank, work);
            find_power(fbank, work);
            write_bands(fbank, work, n_windows, bands + frame * N_BANDS);
        }
        stack(fbank, bands, n_frames, out);
    }
    const int is_done = bands && work;
    free(bands);
    free(work);
    return is_done;
}
