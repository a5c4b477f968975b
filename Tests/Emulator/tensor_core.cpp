// What the tensor cores compute, once all threads have met.
#include "tensor_core.h"

namespace machine {

// How an operand of 32 bits becomes numbers, and what they are summed in.
struct BF16 {
    using Sum = float;
    static constexpr int kPerWord = 2;
    static float number(u32 word, int i) { return from_bf16(u16(word >> (16 * i))); }
};
struct F16 {
    using Sum = float;
    static constexpr int kPerWord = 2;
    static float number(u32 word, int i) { return from_f16(u16(word >> (16 * i))); }
};
struct TF32 {
    using Sum = float;
    static constexpr int kPerWord = 1;
    static float number(u32 word, int) { return std::bit_cast<float>(word & ~0x1fffu); }
};
struct S8 {
    using Sum = int;
    static constexpr int kPerWord = 4;
    static int number(u32 word, int i) { return int8_t(word >> (8 * i)); }
};
struct E4M3 {
    using Sum = float;
    static constexpr int kPerWord = 4;
    static float number(u32 word, int i) {
        struct Table {
            float values[256];
            Table() {
                for (int code = 0; code < 256; code++) values[code] = from_e4m3(uint8_t(code));
            }
        };
        static const Table table;
        return table.values[word >> (8 * i) & 0xff];
    }
};

/// The numbers along K of 32 bytes.
template <class Type>
constexpr int kDepth = 8 * Type::kPerWord;

/// A warp's registers of A, as `a[row][k]`.
template <class Type>
void read_fragment(const u32 (&words)[32][4], typename Type::Sum (*a)[32]) {
    for (int lane = 0; lane < 32; lane++) {
        for (int word = 0; word < 4; word++) {
            for (int i = 0; i < Type::kPerWord; i++) {
                const int k = Type::kPerWord * (lane % 4 + 4 * (word / 2)) + i;
                a[lane / 4 + 8 * (word % 2)][k] = Type::number(words[lane][word], i);
            }
        }
    }
}

/// sums[row][column] = a b, one product after the other. a: [rows, K], b: [K, columns]
template <class Type, int kColumns>
void multiply(const typename Type::Sum (*a)[32], const typename Type::Sum (*b)[kColumns], int rows, int columns,
              typename Type::Sum (*sums)[kColumns]) {
    for (int row = 0; row < rows; row++) {
        for (int column = 0; column < columns; column++) sums[row][column] = 0;
        for (int k = 0; k < kDepth<Type>; k++) {
            const auto x = a[row][k];
            for (int column = 0; column < columns; column++) sums[row][column] += x * b[k][column];
        }
    }
}

template <class Type, class Result>
void multiply_warp(void* const* lanes) {
    typename Type::Sum a[16][32], b[32][8], sums[16][8];
    u32 fragments[32][4];
    for (int lane = 0; lane < 32; lane++) {
        if (!lanes[lane]) fail("mma without all lanes");
        const auto& one = *static_cast<Product*>(lanes[lane]);
        memcpy(fragments[lane], one.a, sizeof one.a);
        for (int word = 0; word < 2; word++) {
            for (int i = 0; i < Type::kPerWord; i++) {
                b[Type::kPerWord * (lane % 4 + 4 * word) + i][lane / 4] = Type::number(one.b[word], i);
            }
        }
    }
    read_fragment<Type>(fragments, a);
    multiply<Type, 8>(a, b, 16, 8, sums);
    for (int lane = 0; lane < 32; lane++) {
        const auto& one = *static_cast<Product*>(lanes[lane]);
        for (int i = 0; i < 4; i++) {
            const auto sum = sums[lane / 4 + 8 * (i / 2)][2 * (lane % 4) + i % 2];
            if constexpr (std::is_same_v<Result, u32>) {
                u32& pair = *static_cast<u32*>(one.d[i / 2]);
                const int bit = 16 * (i % 2);
                const u16 half = to_f16(from_f16(u16(pair >> bit)) + float(sum));
                pair = (pair & ~(0xffffu << bit)) | u32(half) << bit;
            } else {
                *static_cast<Result*>(one.d[i]) += sum;
            }
        }
    }
}
template void multiply_warp<BF16, float>(void* const*);
template void multiply_warp<F16, float>(void* const*);
template void multiply_warp<F16, u32>(void* const*);
template void multiply_warp<TF32, float>(void* const*);
template void multiply_warp<S8, int>(void* const*);
template void multiply_warp<E4M3, float>(void* const*);
template void multiply_warp<E4M3, u32>(void* const*);

/// The shared address of byte `byte` of row `row` of an operand; of a transposed one, that of its row `byte / 2` along K
/// and its column `row`, whose elements have 16 bits.
u32 described(u64 descriptor, int row, int byte, bool transposed) {
    u32 address = u32(descriptor & 0x3fff) << 4;
    const u32 leading = u32(descriptor >> 16 & 0x3fff) << 4, stride = u32(descriptor >> 32 & 0x3fff) << 4;
    const int mode = int(descriptor >> 62);
    const u32 width = mode == 0 ? 16 : 256u >> mode;
    if (transposed) {
        const u32 across = u32(row) * 2, down = u32(byte) / 2;
        address += across / width * leading + down / 8 * stride + down % 8 * width + across % width;
    } else {
        address += u32(row) / 8 * stride + u32(row) % 8 * width + u32(byte) % width + u32(byte) / width * leading;
    }
    const u32 mask = mode == 0 ? 0 : (8u >> (mode - 1)) - 1;
    return address ^ ((address >> 7 & mask) << 4);
}

template <class Type, class Store>
void read_operand(u64 descriptor, int rows, bool transposed, Store store) {
    constexpr int kBytes = 4 / Type::kPerWord;
    for (int row = 0; row < rows; row++) {
        for (int k = 0; k < kDepth<Type>; k++) {
            u32 word = 0;
            memcpy(&word, at_shared(described(descriptor, row, k * kBytes, transposed), kBytes), kBytes);
            store(row, k, Type::number(word, 0));
        }
    }
}

template <class Type>
void multiply_warpgroup(void* const* threads) {
    using Sum = typename Type::Sum;
    static thread_local Sum a[64][32], b[32][256], sums[64][256];
    for (int i = 0; i < 128; i++) {
        if (!threads[i]) fail("wgmma without all threads of a warpgroup");
    }
    const auto& first = *static_cast<Warpgroup*>(threads[0]);
    if (first.from_registers) {
        for (int warp = 0; warp < 4; warp++) {
            u32 fragments[32][4];
            for (int lane = 0; lane < 32; lane++) {
                memcpy(fragments[lane], static_cast<Warpgroup*>(threads[32 * warp + lane])->fragment, 16);
            }
            read_fragment<Type>(fragments, a + 16 * warp);
        }
    } else {
        read_operand<Type>(first.a, 64, first.transpose_a, [](int row, int k, Sum x) { a[row][k] = x; });
    }
    read_operand<Type>(first.b, first.columns, first.transpose_b, [](int column, int k, Sum x) { b[k][column] = x; });
    multiply<Type, 256>(a, b, 64, first.columns, sums);
    for (int i = 0; i < 128; i++) {
        const auto& one = *static_cast<Warpgroup*>(threads[i]);
        if (one.b != first.b || one.a != first.a || one.columns != first.columns) fail("wgmma with two operands");
        for (int j = 0; j < first.columns / 2; j++) {
            const Sum sum = sums[16 * (i / 32) + i % 32 / 4 + 8 * (j / 2 % 2)][8 * (j / 4) + 2 * (i % 4) + j % 2];
            Sum& d = *static_cast<Sum*>(one.d[j]);
            d = one.accumulate ? d + sum : sum;
        }
    }
}
template void multiply_warpgroup<BF16>(void* const*);
template void multiply_warpgroup<F16>(void* const*);
template void multiply_warpgroup<S8>(void* const*);
template void multiply_warpgroup<E4M3>(void* const*);

}  // namespace machine
