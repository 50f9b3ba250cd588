#define NAME "avx512"
#define LANES 16
#define ROWS 12
#include "kernels.inl"

const pertinent::Kernels &pertinent::avx512_kernels() { return table; }
