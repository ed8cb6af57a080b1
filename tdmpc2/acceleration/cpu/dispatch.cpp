// The functions of the library: which variants there are, which of them this processor can run, and whether one agrees
// with the scalar variant. TDMPC2_VARIANTS names those that the compiler could build, each faster than those before it.
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <vector>

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif
#if defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

#include "kernels.h"

#define TDMPC2_EXPORT extern "C" __attribute__((visibility("default")))

namespace tdmpc2 {

#define DECLARE(NAME) \
    namespace NAME { extern const Kernels kernels; }
TDMPC2_VARIANTS(DECLARE)
#undef DECLARE

namespace {

#define ADDRESS(NAME) &NAME::kernels,
constexpr const Kernels* variants[] = {TDMPC2_VARIANTS(ADDRESS)};
#undef ADDRESS
constexpr int num_variants = sizeof variants / sizeof *variants;

#if defined(__x86_64__)
// True if the processor has the tiles of AMX and the operating system keeps them. Linux wants to be asked first, since
// they make the state of every thread larger: Documentation/arch/x86/xstate.rst.
bool tiles_are_allowed() {
#if defined(TDMPC2_TILES)  // of a test
    return true;
#elif defined(__linux__)
    unsigned unused = 0, extensions = 0, features = 0;
    __get_cpuid(1, &unused, &unused, &extensions, &unused);
    __get_cpuid_count(7, 0, &unused, &unused, &unused, &features);
    const bool amx = features >> 22 & 1 && features >> 24 & 1 && features >> 25 & 1;  // BF16, TILE, INT8
    if (!amx || !(extensions >> 27 & 1)) return false;                                // OSXSAVE
    unsigned kept = 0;
    asm volatile("xgetbv" : "=a"(kept) : "c"(0) : "edx");
    constexpr unsigned config_and_data = 3 << 17;
    constexpr long ask = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return (kept & config_and_data) == config_and_data && !syscall(SYS_arch_prctl, ask, tile_data);
#else
    return false;
#endif
}
#endif

bool runs_here(const char* name) {
    const auto is = [&](const char* other) { return !std::strcmp(name, other); };
    if (is("scalar")) return true;
#if defined(__x86_64__)  // the operating system keeps the wide registers, too: __builtin_cpu_supports asks for both
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (is("avx2")) return avx2;
    unsigned more = 0, unused = 0;  // cpuid 7.1, which older compilers have no names for
    __get_cpuid_count(7, 1, &more, &unused, &unused, &unused);
    if (is("avxvnni")) return avx2 && more >> 4 & 1;
    const bool avx512vnni = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                            __builtin_cpu_supports("avx512vnni");
    if (is("avx512vnni")) return avx512vnni;
    const bool avx512 = avx512vnni && more >> 5 & 1;  // BF16
    if (is("avx512")) return avx512;
    if (is("amx")) return avx512 && tiles_are_allowed();
#elif defined(__aarch64__)
    if (is("neon")) return true;
#if defined(__linux__)
    const bool dotprod = getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
    if (is("dotprod")) return dotprod;
    constexpr unsigned long i8mm_and_bf16 = 1 << 13 | 1 << 14;  // of AT_HWCAP2; older headers have no names for them
    if (is("i8mm")) return dotprod && (getauxval(AT_HWCAP2) & i8mm_and_bf16) == i8mm_and_bf16;
#endif
#endif
    return false;
}

// -- one small layer in every format, and Mish of LayerNorm -----------------------------------------------------------

constexpr int rows = 21, inputs = 71, outputs = 80, padded = 128;
static_assert(padded % padding == 0);

// Numbers between -1 and 1 that are the same everywhere.
struct Numbers {
    float operator()() { return float(int((state = state * 1664525 + 1013904223) >> 8) - (1 << 23)) / float(1 << 23); }
    uint32_t state = 1;
};

struct Example {
    Example() {
        Numbers number;
        for (float& v : x) v = number();
        for (float& v : weight) v = number();
        for (int i = 0; i < outputs * inputs; i++) codes[i] = int8_t(weight[i] * 127);
        for (int j = 0; j < outputs; j++) {
            scale[j] = 0.01f + number() * 0.001f, bias[j] = number(), gain[j] = 1 + number() / 2, shift[j] = number();
            int sum = 0;
            for (int i = 0; i < inputs; i++) sum += codes[j * inputs + i];
            sums[j] = float(sum) * scale[j];
            ones[j] = 1;
        }
    }

    std::vector<float> layer(const Kernels& k, Format format, int count) const {
        const bool integers = format == INT8 || format == INT12;
        const size_t bytes = k.packed_bytes(format, inputs, outputs);
        std::vector<int64_t> packed((bytes + 7) / 8);
        k.pack(format, inputs, outputs, integers ? static_cast<const void*>(codes) : weight, packed.data());
        const Layer layer{format, inputs, outputs, MISH, packed.data(), integers ? scale : ones, sums,
                          bias, gain, shift, nullptr, nullptr, nullptr};
        std::vector<float> out(count * outputs);
        k.normed_linear(&layer, count, 1, x, out.data());
        return out;
    }

    std::vector<float> norm_mish(const Kernels& k) const {
        std::vector<float> out(rows * 64), stats(2 * rows);
        k.norm_mish(0, x, bias, gain, shift, nullptr, out.data(), stats.data(), 1, rows, 64, rows * 64, 64, 1,
                    nullptr);
        return out;
    }

    float x[rows * inputs], weight[outputs * inputs];
    int8_t codes[outputs * inputs];
    float scale[padded] = {}, ones[padded] = {}, sums[padded] = {}, bias[padded] = {}, gain[padded] = {},
          shift[padded] = {};
};

bool close(const std::vector<float>& a, const std::vector<float>& b) {
    for (size_t i = 0; i < a.size(); i++)
        if (!(std::fabs(a[i] - b[i]) <= 1e-4f * (1 + std::fabs(b[i])))) return false;
    return true;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
    return !std::memcmp(a.data(), b.data(), a.size() * sizeof(float));
}

}  // namespace
}  // namespace tdmpc2

using namespace tdmpc2;

// What the library was built from.
TDMPC2_EXPORT const char* tdmpc2_sources() { return TDMPC2_SOURCES; }

// The functions of a variant; null after the last.
TDMPC2_EXPORT const Kernels* tdmpc2_kernels(int index) {
    return index >= 0 && index < num_variants ? variants[index] : nullptr;
}

// 1 if this processor has the instructions of a variant.
TDMPC2_EXPORT int tdmpc2_runs_here(int index) { return runs_here(variants[index]->name); }

// 1 if a variant computes what the scalar one does: integers to the last bit.
TDMPC2_EXPORT int tdmpc2_agrees(int index) {
    const Example example;
    const Kernels &mine = *variants[index], &scalar = *variants[0];
    for (const int count : {1, 2, 3, 4, 5, 6, rows}) {  // blocks of every height
        for (const Format format : {FP32, BF16})
            if (!close(example.layer(mine, format, count), example.layer(scalar, format, count))) return 0;
        for (const Format format : {INT8, INT12})
            if (!same_bits(example.layer(mine, format, count), example.layer(scalar, format, count))) return 0;
    }
    return !mine.norm_mish || close(example.norm_mish(mine), example.norm_mish(scalar));
}
