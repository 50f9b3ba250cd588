#define NAME "avx2"
#define LANES 8
#define ROWS 6
#include "kernels.inl"

const pertinent::Kernels &pertinent::avx2_kernels() { return table; }
