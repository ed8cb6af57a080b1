// Compiles where the compiler and its assembler know the instructions of a variant. A compiler may know a flag whose
// instructions an older assembler beside it refuses: GCC 11 with binutils 2.35 takes -mavxvnni, for example. CMake reads
// this text through macros, so no backslash may stand in it.
int main() {
#if defined(__AMX_INT8__)
    asm volatile("tdpbusd %%tmm0, %%tmm1, %%tmm2" ::: "memory");
    asm volatile("tdpbf16ps %%tmm0, %%tmm1, %%tmm2" ::: "memory");
#elif defined(__AVX512BF16__)
    asm volatile("vdpbf16ps %%zmm0, %%zmm0, %%zmm0" ::: "memory");
    asm volatile("vpdpbusd %%zmm0, %%zmm0, %%zmm0" ::: "memory");
#elif defined(__AVX512VNNI__)
    asm volatile("vpdpbusd %%zmm0, %%zmm0, %%zmm0" ::: "memory");
#elif defined(__AVXVNNI__)
    asm volatile("%{vex%} vpdpbusd %%ymm0, %%ymm0, %%ymm0" ::: "memory");
#elif defined(__ARM_FEATURE_MATMUL_INT8)
    asm volatile("usmmla v0.4s, v0.16b, v0.16b" ::: "memory");
    asm volatile("bfmmla v0.4s, v0.8h, v0.8h" ::: "memory");
#elif defined(__ARM_FEATURE_DOTPROD)
    asm volatile("sdot v0.4s, v0.16b, v0.16b" ::: "memory");
#endif
    return 0;
}
