// Vectors of the machine's own width by the compiler's vector extension, sums of many at once, elementary functions.
#pragma once
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#define INLINE inline __attribute__((always_inline))

#if defined(__AVX512F__)
constexpr int VECTOR_BYTES = 64;
#elif defined(__AVX__)
constexpr int VECTOR_BYTES = 32;
#else
constexpr int VECTOR_BYTES = 16;
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
template <class T> inline void store(T* to, Vec<T> v) { std::memcpy(to, &v, sizeof v); }

// Lanes of a, then of b, by number.
template <class T, int... lane> INLINE Vec<T> pick(Vec<T> a, Vec<T> b) {
#ifdef __clang__
    return __builtin_shufflevector(a, b, lane...);
#else
    return __builtin_shuffle(a, b, typename Simd<T>::Bits{lane...});
#endif
}

// Halves of every block of 2·half lanes: (Σ of a's two, Σ of b's two). The first pick moves no lane: that is cheaper.
template <class T, int half, int... lane> INLINE Vec<T> fold(Vec<T> a, Vec<T> b, std::integer_sequence<int, lane...>) {
    constexpr int n = Simd<T>::lanes;
    return pick<T, (lane % (2 * half) < half ? lane : n + lane)...>(a, b) +
           pick<T, (lane % (2 * half) < half ? lane + half : n + lane - half)...>(a, b);
}

// v[0] becomes (Σ of v[0]'s lanes, Σ of v[1]'s, …): a vector of sums for as many vectors as one has lanes.
template <class T, int half = Simd<T>::lanes / 2> INLINE void sum_lanes(Vec<T>* v) {
    if constexpr (half > 0) {
#pragma GCC unroll 16
        for (int j = 0; j < half; ++j)
            v[j] = fold<T, half>(v[j], v[j + half], std::make_integer_sequence<int, Simd<T>::lanes>{});
        sum_lanes<T, half / 2>(v);
    }
}

// e^x = scale·(1 + tail) for |x| up to 88 in float32, 708 in float64: x = k·ln 2 + r, scale = 2^k, tail = e^r − 1.
template <class T> struct Exponential {
    using V = Vec<T>;
    using Bits = typename Simd<T>::Bits;
    static constexpr bool single = sizeof(T) == 4;
    static constexpr int mantissa = single ? 23 : 52, bias = single ? 127 : 1023, degree = single ? 7 : 13;
    static constexpr T round = single ? 12582912 : 6755399441055744;  // 1.5·2^mantissa: adding it leaves the integer
    static constexpr T ln2_high = single ? 0.693359375 : 6.93145751953125e-1;  // few bits, so that k·ln2_high is exact
    static constexpr T ln2_low = single ? -2.12194440054690583e-4 : 1.42860682030941723212e-6;
    V scale, tail;

    INLINE explicit Exponential(V x) {
        V shifted = x * T(1.4426950408889634074) + round;
        V k = shifted - round;
        V r = (x - k * ln2_high) - k * ln2_low;
        scale = (V)((((Bits)shifted) << mantissa) + ((Bits{} + bias) << mantissa));
        double coefficient = 1;  // Taylor: 1/2 + r/6 + …
        for (int n = 2; n <= degree; ++n) coefficient /= n;
        V sum = V{} + T(coefficient);
#pragma GCC unroll 16
        for (int n = degree; n > 2; --n) sum = sum * r + T(coefficient *= n);
        tail = r + r * r * sum;
    }
    V minus_one() const { return scale * tail + (scale - T(1)); }
};

template <class T> inline Vec<T> sign(Vec<T> x) {  // its sign bits
    using Bits = typename Simd<T>::Bits;
    return (Vec<T>)((Bits)x & (Bits)(-Vec<T>{}));
}
template <class T> inline Vec<T> flip(Vec<T> x, Vec<T> signs) {
    using Bits = typename Simd<T>::Bits;
    return (Vec<T>)((Bits)x ^ (Bits)signs);
}
template <class T> inline Vec<T> magnitude(Vec<T> x) { return flip<T>(x, sign<T>(x)); }

// Activations: σ(z), σ' from a = σ(z), σ'' from a and σ'. Comparisons are written so that NaN stays NaN.
template <class T> struct Tanh {
    using V = Vec<T>;
    static V value(V z) {
        const V limit = V{} + T(sizeof(T) == 4 ? 10 : 20);  // beyond it tanh is 1 to rounding
        V size = magnitude<T>(z);
        V less = Exponential<T>(T(2) * (size > limit ? limit : size)).minus_one();
        return flip<T>(less / (less + T(2)), sign<T>(z));
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
        V sum = V{} + T(1.0 / (2 * terms + 1));
#pragma GCC unroll 16
        for (int n = terms - 1; n > 0; --n) sum = sum * square + T(1.0 / (2 * n + 1));
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

enum class Activation : int64_t { tanh, sigmoid, softplus, relu };

template <class T, class F> inline void with(Activation kind, F run) {
    switch (kind) {
        case Activation::tanh: return run(Tanh<T>{});
        case Activation::sigmoid: return run(Sigmoid<T>{});
        case Activation::softplus: return run(Softplus<T>{});
        case Activation::relu: return run(Relu<T>{});
    }
}
