/* How wide the vectors are for which this is compiled. Code for wider ones works, but slowly. */
#ifndef SENSEVOICE_LANES_H
#define SENSEVOICE_LANES_H

#ifdef __AVX512F__
#define VECTOR_BYTES 64
#else
#define VECTOR_BYTES 32
#endif

#endif
