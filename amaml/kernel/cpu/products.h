// Products of matrices whose rows or columns are contiguous, computed in tiles of sums that stay in registers.
#pragma once
#include <algorithm>
#include <cstddef>

#include "vectors.h"

template <class T> constexpr int64_t whole_vectors(int64_t count) {  // `count` rounded up to whole vectors
    return (count + Simd<T>::lanes - 1) / Simd<T>::lanes * Simd<T>::lanes;
}

constexpr int64_t LARGEST_TILE = 16;  // rows or columns; reads may go this far past the end of a matrix

// Entry (r, c) is at[r·row + c·column].
template <class T> struct Matrix {
    T* at;
    int64_t row, column;
    Matrix turned() const { return {at, column, row}; }
    operator Matrix<const T>() const { return {at, row, column}; }
};
template <class T> struct Factors {
    Matrix<const T> left, right;
};
// out = start + Σ over terms of left·right, matrices of rows × inner and inner × columns.
template <class T> struct Product {
    int64_t rows, columns, inner;
    Matrix<T> out;
    Matrix<const T> start;
    int count;  // of terms
    Factors<T> terms[2];
};

// Computes the tile at row r and column c. A tile of few sums would wait for its own additions, so it has several sums for each
// entry, each over its own share of `inner`.
template <class T, int rows, int columns> void tile(const Product<T>& p, int64_t r, int64_t c) {
    using V = Vec<T>;
    constexpr int lanes = Simd<T>::lanes, size = rows * columns, shares = std::clamp(REGISTERS / 2 / size, 1, 4);
    V sum[shares * size] = {};
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i) {
        const T* from = p.start.at + (r + i) * p.start.row + c * p.start.column;
        const V all = broadcast<T>(*from);
#pragma GCC unroll 4
        for (int j = 0; j < columns; ++j) sum[i * columns + j] = p.start.column ? load(from + j * lanes) : all;
    }
    for (int t = 0; t < p.count; ++t) {
        const int64_t row = p.terms[t].left.row, step = p.terms[t].left.column, next = p.terms[t].right.row;
        const T *right = p.terms[t].right.at + c, *left[(rows + 3) / 4];  // every fourth row: registers for pointers are few
        for (int i = 0; i < rows; i += 4) left[i / 4] = p.terms[t].left.at + (r + i) * row;
        const auto add = [&](int share) __attribute__((always_inline)) {
            V x[columns];
#pragma GCC unroll 4
            for (int j = 0; j < columns; ++j) x[j] = load(right + j * lanes);
#pragma GCC unroll 16
            for (int i = 0; i < rows; ++i) {
                const V w = broadcast<T>(left[i / 4][i % 4 * row]);
#pragma GCC unroll 4
                for (int j = 0; j < columns; ++j) sum[share * size + i * columns + j] += w * x[j];
            }
#pragma GCC unroll 4
            for (int i = 0; i < rows; i += 4) left[i / 4] += step;
            right += next;
        };
        int64_t k = 0;
        for (; k + shares <= p.inner; k += shares) {
#pragma GCC unroll 4
            for (int s = 0; s < shares; ++s) add(s);
        }
        if constexpr (shares > 1)
            for (; k < p.inner; ++k) add(0);
    }
    T* to = p.out.at + r * p.out.row + c;
#pragma GCC unroll 32
    for (int q = 0; q < size; ++q) {
#pragma GCC unroll 4
        for (int s = 1; s < shares; ++s) sum[q] += sum[s * size + q];
        store(to + q / columns * p.out.row + q % columns * lanes, sum[q]);
    }
}

// All rows from r on, of `columns` vectors from column c on: `rows` rows at a time, the remainder by tiles of half the height.
template <class T, int rows, int columns> void tiles(const Product<T>& p, int64_t r, int64_t c) {
    for (; r + rows <= p.rows; r += rows) tile<T, rows, columns>(p, r, c);
    if constexpr (rows > 1)
        if (r < p.rows) tiles<T, rows / 2, columns>(p, r, c);
}

// The product by tiles of sums in registers, where the rows of `right` and `out` are contiguous.
template <class T> void by_tiles(const Product<T>& p) {
    constexpr int lanes = Simd<T>::lanes, height = REGISTERS / 4;
    const int64_t most = p.rows < height ? 4 : 3;
    int64_t left = whole_vectors<T>(p.columns) / lanes, c = 0;
    for (int64_t parts = (left + most - 1) / most; parts; --parts) {
        const int64_t width = (left + parts - 1) / parts;
        switch (width) {
            case 4: tiles<T, height / 2, 4>(p, 0, c); break;
            case 3: tiles<T, height, 3>(p, 0, c); break;
            case 2: tiles<T, height, 2>(p, 0, c); break;
            default: tiles<T, 2 * height, 1>(p, 0, c);
        }
        left -= width, c += width * lanes;
    }
}

// Writes the tile at (i, j) of by_sums, whose entries are in `sum` row by row.
template <class T, int height, int width> INLINE void finish(const Product<T>& p, int64_t i, int64_t j, const Vec<T>* sum) {
    constexpr int lanes = Simd<T>::lanes, size = height * width;
    if (width == 1 && p.out.row == 1 && p.start.row == 0) {
        const Vec<T> start = broadcast<T>(p.start.at[j * p.start.column]);
        for (int q = 0; q < size && i + q < p.rows; q += lanes)
            store(p.out.at + i + q + j * p.out.column, sum[q / lanes] + start);
        return;
    }
    T sums[size];
    for (int q = 0; q < size; q += lanes) store(sums + q, sum[q / lanes]);
    for (int64_t r = i; r < std::min<int64_t>(i + height, p.rows); ++r)
        for (int64_t c = j; c < std::min<int64_t>(j + width, p.columns); ++c)
            p.out.at[r * p.out.row + c * p.out.column] =
                p.start.at[r * p.start.row + c * p.start.column] + sums[(r - i) * width + c - j];
}

// The product by sums across lanes, where the rows of `left` and the columns of `right` are contiguous: height × width sums at a
// time. It reads past the last row or column up to a whole tile, and doesn't use what it reads there.
template <class T, int height, int width> void by_sums(const Product<T>& p) {
    constexpr int lanes = Simd<T>::lanes, size = height * width;
    for (int64_t i = 0; i < p.rows; i += height)
        for (int64_t j = 0; j < p.columns; j += width) {
            Vec<T> sum[size] = {};
            for (int t = 0; t < p.count; ++t) {
                const int64_t row = p.terms[t].left.row, column = p.terms[t].right.column;
                const T *left[(height + 3) / 4], *right[(width + 3) / 4];
                for (int q = 0; q < height; q += 4) left[q / 4] = p.terms[t].left.at + (i + q) * row;
                for (int q = 0; q < width; q += 4) right[q / 4] = p.terms[t].right.at + (j + q) * column;
                const auto add = [&](int64_t k, auto part) __attribute__((always_inline)) {
                    Vec<T> a[height], b[width];
#pragma GCC unroll 16
                    for (int q = 0; q < height; ++q) a[q] = part(load(left[q / 4] + q % 4 * row + k));
#pragma GCC unroll 16
                    for (int q = 0; q < width; ++q) b[q] = part(load(right[q / 4] + q % 4 * column + k));
#pragma GCC unroll 16
                    for (int q = 0; q < size; ++q) sum[q] += a[q / width] * b[q % width];
                };
                int64_t k = 0;
                for (; k + lanes <= p.inner; k += lanes) add(k, [](Vec<T> v) { return v; });
                if (k < p.inner) add(k, [&](Vec<T> v) { return first_lanes<T>(v, p.inner - k); });
            }
            for (int q = 0; q < size; q += lanes) sum_lanes<T>(sum + q), sum[q / lanes] = sum[q];
            finish<T, height, width>(p, i, j, sum);
        }
}
template <class T> Product<T> turned(const Product<T>& p) {  // (A·B)ᵀ = Bᵀ·Aᵀ
    const auto turn = [](const Factors<T>& f) { return Factors<T>{f.right.turned(), f.left.turned()}; };
    return {p.columns, p.rows, p.inner, p.out.turned(), p.start.turned(), p.count, {turn(p.terms[0]), turn(p.terms[1])}};
}

// Computes a product by the algorithm that fits the strides of its matrices. The numbers that pad vectors may be anything, since
// results never depend on them.
template <class T> void multiply(const Product<T>& p) {
    if (p.out.column == 1 && p.terms[0].right.column == 1) by_tiles(p);
    else if (p.out.row == 1 && p.terms[0].left.row == 1) by_tiles(turned(p));
    else if (p.columns == 1) by_sums<T, 16, 1>(p);
    else if (p.rows == 1) by_sums<T, 1, 16>(p);
    else by_sums<T, 4, 4>(p);
}

// out[i] += Σ over k < inner of matrix(i, k), whose rows are contiguous.
template <class T> void add_row_sums(int64_t rows, int64_t inner, Matrix<const T> matrix, T* out) {
    constexpr int lanes = Simd<T>::lanes;
    for (int64_t i = 0; i < rows; i += lanes) {
        Vec<T> sum[lanes] = {};
        for (int64_t r = i; r < std::min(i + lanes, rows); ++r) {
            const T* from = matrix.at + r * matrix.row;
            int64_t k = 0;
            for (; k + lanes <= inner; k += lanes) sum[r - i] += load(from + k);
            if (k < inner) sum[r - i] += first_lanes<T>(load(from + k), inner - k);
        }
        sum_lanes<T>(sum);
        for (int64_t r = i; r < std::min(i + lanes, rows); ++r) out[r] += sum[0][r - i];
    }
}

// to(c, r) = from(r, c), first by squares of whole vectors; the rows of both matrices are contiguous.
template <class T> void transpose(Matrix<const T> from, int64_t rows, int64_t columns, Matrix<T> to) {
    constexpr int lanes = Simd<T>::lanes;
    const int64_t high = rows / lanes * lanes, wide = columns / lanes * lanes;
    for (int64_t r = 0; r < high; r += lanes)
        for (int64_t c = 0; c < wide; c += lanes) {
            Vec<T> square[lanes];
#pragma GCC unroll 16
            for (int q = 0; q < lanes; ++q) square[q] = load(from.at + (r + q) * from.row + c);
            turn<T>(square);
#pragma GCC unroll 16
            for (int q = 0; q < lanes; ++q) store(to.at + (c + q) * to.row + r, square[q]);
        }
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = r < high ? wide : 0; c < columns; ++c) to.at[c * to.row + r] = from.at[r * from.row + c];
}

template <class T> void copy_rows(Matrix<const T> from, int64_t rows, int64_t columns, Matrix<T> to) {
    for (int64_t r = 0; r < rows; ++r) std::copy_n(from.at + r * from.row, columns, to.at + r * to.row);
}
