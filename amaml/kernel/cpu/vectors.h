// Vectors of the machine's register width by the compiler's vector extension, with sums across lanes, transposition and
// elementary functions; and aligned memory for long vectors.
#pragma once
#include <cstdint>
#include <cstring>
#include <new>
#include <type_traits>
#include <utility>
#include <vector>

#include "problem.h"

#define INLINE inline __attribute__((always_inline))

#if defined(__AVX512F__)
constexpr int VECTOR_BYTES = 64;
#elif defined(__AVX__)
constexpr int VECTOR_BYTES = 32;
#else
constexpr int VECTOR_BYTES = 16;
#endif
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int REGISTERS = 32;
#else
constexpr int REGISTERS = 16;
#endif

template <class T> struct Simd {
    using Word = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
    typedef T V __attribute__((vector_size(VECTOR_BYTES)));
    typedef Word Bits __attribute__((vector_size(VECTOR_BYTES)));
    static constexpr int lanes = VECTOR_BYTES / sizeof(T);
};
template <class T> using Vec = typename Simd<T>::V;

template <class T> inline Vec<T> load(const T* from) {
    Vec<T> v;
    std::memcpy(&v, from, sizeof v);
    return v;
}
template <class T> inline Vec<T> broadcast(T x) { return x - Vec<T>{}; }  // x + 0 would cost an addition: it turns −0 into 0
template <class T> inline void store(T* to, Vec<T> v) { std::memcpy(to, &v, sizeof v); }

// The numbered lanes of a and b, where b's are counted after a's.
template <class T, int... lane> INLINE Vec<T> pick(Vec<T> a, Vec<T> b) {
#ifdef __clang__
    return __builtin_shufflevector(a, b, lane...);
#else
    return __builtin_shuffle(a, b, typename Simd<T>::Bits{lane...});
#endif
}

// For every block of 2·half lanes: the sum of the two halves of a, then that of the two halves of b. The first pick moves no
// lane, which is cheaper.
template <class T, int half, int... lane> INLINE Vec<T> fold(Vec<T> a, Vec<T> b, std::integer_sequence<int, lane...>) {
    constexpr int n = Simd<T>::lanes;
    return pick<T, (lane % (2 * half) < half ? lane : n + lane)...>(a, b) +
           pick<T, (lane % (2 * half) < half ? lane + half : n + lane - half)...>(a, b);
}

// Sums the lanes of as many vectors as one vector has lanes: v[0] becomes (Σ of v[0], Σ of v[1], …).
template <class T, int half = Simd<T>::lanes / 2> INLINE void sum_lanes(Vec<T>* v) {
    if constexpr (half > 0) {
#pragma GCC unroll 16
        for (int j = 0; j < half; ++j)
            v[j] = fold<T, half>(v[j], v[j + half], std::make_integer_sequence<int, Simd<T>::lanes>{});
        sum_lanes<T, half / 2>(v);
    }
}

// Transposes a square: as many vectors as one vector has lanes.
template <class T, int half, int... lane> INLINE void swap_halves(Vec<T>& a, Vec<T>& b, std::integer_sequence<int, lane...>) {
    constexpr int n = Simd<T>::lanes;
    const Vec<T> lower = pick<T, (lane & half ? n + lane - half : lane)...>(a, b);
    b = pick<T, (lane & half ? n + lane : lane + half)...>(a, b), a = lower;
}
template <class T, int half = Simd<T>::lanes / 2> INLINE void turn(Vec<T>* v) {
    if constexpr (half > 0) {
#pragma GCC unroll 16
        for (int j = 0; j < Simd<T>::lanes; ++j)
            if (!(j & half)) swap_halves<T, half>(v[j], v[j + half], std::make_integer_sequence<int, Simd<T>::lanes>{});
        turn<T, half / 2>(v);
    }
}

// v with all but its first `count` lanes set to 0.
template <class T> inline Vec<T> first_lanes(Vec<T> v, int64_t count) {
    using Bits = typename Simd<T>::Bits;
    Bits number;
    for (int q = 0; q < Simd<T>::lanes; ++q) number[q] = q;
    return (Vec<T>)((Bits)v & (Bits)(number < Bits{} + typename Simd<T>::Word(count)));
}

// Σ coefficient(n)·xⁿ over n < terms. Even and odd powers are summed separately, so that additions don't wait for each other.
template <class T, int terms, class F> INLINE Vec<T> series(Vec<T> x, F coefficient) {
    const Vec<T> square = x * x;
    Vec<T> sum[2];
    sum[(terms - 1) % 2] = Vec<T>{} + T(coefficient(terms - 1)), sum[terms % 2] = Vec<T>{} + T(coefficient(terms - 2));
#pragma GCC unroll 16
    for (int n = terms - 3; n >= 0; --n) sum[n % 2] = sum[n % 2] * square + T(coefficient(n));
    return sum[0] + x * sum[1];
}

// e^x = scale·(1 + tail) for |x| up to 88 in float32, 708 in float64, where x = k·ln 2 + r, scale = 2^k and tail = e^r − 1.
template <class T> struct Exponential {
    using V = Vec<T>;
    using Bits = typename Simd<T>::Bits;
    static constexpr bool single = sizeof(T) == 4;
    static constexpr int mantissa = single ? 23 : 52, bias = single ? 127 : 1023, degree = single ? 7 : 13;
    // 1.5·2^mantissa + bias: adding it rounds to an integer, and leaves that integer plus the exponent's bias in the lowest bits.
    static constexpr T round = T(single ? 12582912 : 6755399441055744) + bias;
    static constexpr T ln2_high = single ? 0.693359375 : 6.93145751953125e-1;  // few bits, so that k·ln2_high is exact
    static constexpr T ln2_low = single ? -2.12194440054690583e-4 : 1.42860682030941723212e-6;
    V scale, tail;

    INLINE explicit Exponential(V x) {
        V shifted = x * T(1.4426950408889634074) + round;
        V k = shifted - round;
        V r = (x - k * ln2_high) - k * ln2_low;
        scale = (V)((Bits)shifted << mantissa);
        tail = r + r * r * series<T, degree - 1>(r, [](int n) {  // Taylor: 1/2 + r/6 + …
            double coefficient = 1;
            for (int k = 2; k <= n + 2; ++k) coefficient /= k;
            return coefficient;
        });
    }
    V minus_one() const { return scale * tail + (scale - T(1)); }
};

template <class T> inline Vec<T> sign(Vec<T> x) {  // the sign bits of x
    using Bits = typename Simd<T>::Bits;
    return (Vec<T>)((Bits)x & (Bits{} + (typename Simd<T>::Word(1) << (8 * sizeof(T) - 1))));
}
template <class T> inline Vec<T> flip(Vec<T> x, Vec<T> signs) {
    using Bits = typename Simd<T>::Bits;
    return (Vec<T>)((Bits)x ^ (Bits)signs);
}
template <class T> inline Vec<T> magnitude(Vec<T> x) { return flip<T>(x, sign<T>(x)); }

// Activations: value is σ(z), slope is σ' from a = σ(z), bend is σ'' from a and σ'. Comparisons are written so that NaN stays
// NaN.
template <class T> struct Tanh {
    using V = Vec<T>;
    static V value(V z) {
        const V less = Exponential<T>(T(2) * z).minus_one(), limit = V{} + T(sizeof(T) == 4 ? 10 : 20);
        const V one = V{} + T(1), ratio = less / (less + T(2));
        return z > limit ? one : z < -limit ? -one : ratio;  // beyond the limit tanh is 1 to rounding
    }
    static V slope(V a) { return T(1) - a * a; }
    static V bend(V a, V slope) { return T(-2) * a * slope; }
};

template <class T> inline Exponential<T> decay(Vec<T> size) {  // e^−size, size ≥ 0
    const Vec<T> limit = Vec<T>{} + T(sizeof(T) == 4 ? 87 : 708);
    return Exponential<T>(-(size > limit ? limit : size));
}

template <class T> struct Sigmoid {
    using V = Vec<T>;
    static V value(V z) {
        auto e = decay<T>(magnitude<T>(z));
        V small = e.scale + e.scale * e.tail;
        return (z < V{} ? small : V{} + T(1)) / (T(1) + small);
    }
    static V slope(V a) { return a - a * a; }
    static V bend(V a, V slope) { return slope - T(2) * a * slope; }
};

template <class T> struct Softplus {
    using V = Vec<T>;
    static V value(V z) {  // max(z, 0) + log(1 + e^−|z|), the logarithm as 2·artanh(s) with s ≤ 1/3
        auto e = decay<T>(magnitude<T>(z));
        V small = e.scale + e.scale * e.tail, s = small / (small + T(2)), square = s * s;
        constexpr int terms = sizeof(T) == 4 ? 7 : 16;
        V sum = series<T, terms>(square, [](int n) { return 1.0 / (2 * n + 3); });
        return (z < V{} ? V{} : z) + T(2) * (s + s * square * sum);
    }
    static V slope(V a) { return -decay<T>(a).minus_one(); }
    static V bend(V, V slope) { return slope - slope * slope; }
};

template <class T> struct Relu {
    using V = Vec<T>;
    static V value(V z) { return z < V{} ? V{} : z; }
    static V slope(V a) { return a > V{} ? V{} + T(1) : V{}; }
    static V bend(V, V) { return V{}; }
};

template <class T, class F> inline void with(Activation kind, F run) {
    switch (kind) {
        case Activation::tanh: return run(Tanh<T>{});
        case Activation::sigmoid: return run(Sigmoid<T>{});
        case Activation::softplus: return run(Softplus<T>{});
        case Activation::relu: return run(Relu<T>{});
    }
}

// Memory that starts on a cache line: a vector that crosses two lines costs two loads.
template <class T> struct Aligned {
    using value_type = T;
    static constexpr std::align_val_t line{64};
    Aligned() = default;
    template <class U> Aligned(const Aligned<U>&) {}
    T* allocate(size_t n) { return static_cast<T*>(::operator new(n * sizeof(T), line)); }
    void deallocate(T* at, size_t) { ::operator delete(at, line); }
    bool operator==(const Aligned&) const { return true; }
    bool operator!=(const Aligned&) const { return false; }
};
template <class T> using Values = std::vector<T, Aligned<T>>;
