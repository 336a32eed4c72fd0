/* Products of tiles of 1 KiB, 16 rows of 64 bytes: on the tile unit of AMX, on the vectors of AVX-512
 * with VNNI or of AVX2, or in plain C.
 *
 * Intel, "Architecture Instruction Set Extensions Programming Reference", chapter 3. A tile of the
 * left side holds 16 rows of 64 bytes (or 32 halves); one of the right side holds 16 columns, each
 * of its rows four (two) neighbours along the sum of every column. So 1 KiB is a tile of either.
 *
 * Layouts: "row tiles" are the tiles of 16 rows one after the other along the sum. A "panel" is 32
 * columns, two tiles side by side at each step along the sum.
 */
#ifndef SENSEVOICE_TILES_H
#define SENSEVOICE_TILES_H

#include <stddef.h>
#include <stdint.h>

#define INLINE static inline __attribute__((always_inline))

/* Linear layers are in int8, unless PARTS is given: then they are in halves as attention is, and
 * each number is the sum of so many, every one of them what those before it leave, rounded. A tile
 * has as many KiB one behind the other, a part in each. */
#ifdef PARTS
#define LINEAR_IS_INT8 0
typedef float Sum;
#else
#define PARTS 1
#define LINEAR_IS_INT8 1
typedef int32_t Sum;
#endif
_Static_assert(PARTS == 1 || PARTS == 3, "bf16, or fp32");
enum { PAIRS_OF_PARTS = PARTS == 1 ? 1 : 6 }; /* of which a product is made */

enum { TILE_BYTES = 1024, TILE_ROWS = 16, PANEL_COLUMNS = 32, INT8_STEP = 64, HALF_STEP = 32 };
enum { LINE_BYTES = 64, NEIGHBOUR_BYTES = 4 }; /* of a row of a tile, and of its neighbours */
enum { ALL_STEPS = 1 << 20 }; /* along a sum, of any layer */
enum { SUM_PADDING = 64 }; /* inputs of a layer are as many, or a multiple, with zeros */

INLINE float widened(uint16_t bf16) {
    union {
        uint32_t bits;
        float value;
    } both = {(uint32_t)bf16 << 16};
    return both.value;
}

/* Rows of one or two row tiles and a panel, and what will be wanted after them. */
typedef struct {
    const void *rows;
    ptrdiff_t row_tile_bytes; /* from the one to the other */
    int n_rows, n_steps; /* those up to a whole tile may be written as well */
    const void *panel;
    int adds; /* to what is there, a sum made in pieces: on the tile unit, and in plain C */
    const void *ahead;
    int lines_ahead; /* at each pair of parts of a step */
} Operands;

INLINE const char *row_at(const Operands *in, int row) {
    return (const char *)in->rows + row / TILE_ROWS * in->row_tile_bytes +
           row % TILE_ROWS * LINE_BYTES;
}

/* Each of these says what a `Half` is, the highest level of activations, how large the sum of the
 * weights of a group may be, if there is such a bound, and in pieces of how many steps a panel is
 * gone through. */
#if defined(__AMX_INT8__)
#include "tiles_amx.h"
#else
static inline int tiles_permitted(void) { return 1; }
static inline void tiles_begin(void) {}
static inline void tiles_end(void) {}
#if defined(__AVX512VNNI__)
#include "tiles_vnni.h"
#elif defined(__AVX2__)
#include "tiles_avx2.h"
#else
#include "tiles_plain.h"
#endif
#endif

#endif
