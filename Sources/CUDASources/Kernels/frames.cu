// Frames as bytes: RGB for pictures, NV12 for video encoders.
#include "rows.cuh"

/// floor(clamp((x + 1) / 2, 0, 1) * 255 + 0.5): [count]
template <typename T, int kVector>
__global__ void rgb8(u8* out, const T* x, i64 count) {
    for_vector<kVector>(count, [&]<int kSize>(i64 i) {
        float values[kSize];
        load_floats(values, x + i);
        Vector<u8, kSize> bytes;
#pragma unroll
        for (int j = 0; j < kSize; ++j) {
            // NaN becomes 0, because fmaxf returns its other operand.
            const float unit = fminf(fmaxf((values[j] + 1.0f) * 0.5f, 0.0f), 1.0f);
            bytes[j] = u8(floorf(unit * 255.0f + 0.5f));
        }
        bytes.store(out + i);
    });
}

/// x clamped to [-1, 1]; NaN becomes -1, because fmaxf returns its other operand.
DEVICE float clamped(float x) { return fminf(fmaxf(x, -1.0f), 1.0f); }

/// BT.709, limited range. A thread computes Y of 2 x kPixels pixels, and Cb and Cr of their 2x2 blocks.
/// x: [frames, height, width, 3] → out: [frames, height * 3 / 2, width]; width is a multiple of kPixels.
template <typename T, int kPixels>
__global__ void nv12(u8* out, const T* x, i64 frames, int height, int width) {
    constexpr int kVector = kPixels % 8 == 0 ? 8 : 1;
    const int columns = width / kPixels, pairs = height / 2;
    const i64 index = first_element<1>();
    if (index >= frames * pairs * columns) return;
    const int column = int(index % columns) * kPixels;
    const int pair = int(index / columns % pairs);
    const i64 frame = index / columns / pairs;
    u8* luma = out + frame * (height + pairs) * width;

    // Sums over 2x2 pixels.
    float red[kPixels / 2] = {}, blue[kPixels / 2] = {}, mean[kPixels / 2] = {};
#pragma unroll
    for (int line = 0; line < 2; ++line) {
        const i64 row = 2 * pair + line;
        const T* source = x + ((frame * height + row) * width + column) * 3;
        float colors[3 * kPixels / kVector][kVector];
#pragma unroll
        for (int i = 0; i < 3 * kPixels / kVector; ++i) {
            load_floats(colors[i], source + i * kVector);
        }
        Vector<u8, kPixels> bytes;
#pragma unroll
        for (int i = 0; i < kPixels; ++i) {
            auto color = [&](int c) {
                return clamped(colors[(3 * i + c) / kVector][(3 * i + c) % kVector]);
            };
            const float r = color(0), b = color(2);
            const float y = 0.2126f * r + 0.7152f * color(1) + 0.0722f * b;
            bytes[i] = u8(126.0f + 109.5f * y);
            red[i / 2] += r;
            blue[i / 2] += b;
            mean[i / 2] += y;
        }
        bytes.store(luma + row * width + column);
    }
    Vector<u8, kPixels> chroma;
#pragma unroll
    for (int i = 0; i < kPixels / 2; ++i) {
        chroma[2 * i] = u8(128.5f + 28.0f / 1.8556f * (blue[i] - mean[i]));
        chroma[2 * i + 1] = u8(128.5f + 28.0f / 1.5748f * (red[i] - mean[i]));
    }
    chroma.store(luma + i64(height + pair) * width + column);
}
