// AVX-512 with products of bytes in one instruction; all else is that of AVX-512.
#define LANES 16
#include "int8.inl"

namespace {
pertinent::Kernels with_vnni() {
    pertinent::Kernels found = pertinent::avx512_kernels();
    found.name = "avx512vnni";
    found.byte_offset = pertinent::BYTE_OFFSET;
    found.round_rows = pertinent::round_rows;
    found.linear_int8 = pertinent::linear_int8;
    return found;
}
}  // namespace

const pertinent::Kernels &pertinent::avx512vnni_kernels() {
    static const Kernels table = with_vnni();
    return table;
}
