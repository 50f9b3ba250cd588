#define NAME "portable"
#define LANES 4
#define ROWS 4
#include "kernels.inl"

const pertinent::Kernels &pertinent::portable_kernels() { return table; }
