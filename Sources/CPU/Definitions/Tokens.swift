/// Operations that only move numbers, between latents, tokens and frames.

import Tensors

extension Definitions {
    func patchify(_ o: Operation.Patchify) -> Tensor {
        let (parts, p) = (o.parts, o.patch)
        let (t, h, w) = (parts[0].shape[1], parts[0].shape[2], parts[0].shape[3])
        let (rows, columns) = (h / p, w / p)
        let channels = parts.reduce(0) { $0 + $1.shape[0] }
        let lines = parts.map { Rows($0, columns: w) }
        // For every channel, its part and its first row in that part.
        var places: [(part: Int, row: Int)] = []
        for (index, part) in parts.enumerated() {
            for channel in 0..<part.shape[0] { places.append((index, channel * t * h)) }
        }
        let features = channels * p * p
        let result = memory.tensor([t * rows * columns, features], o.dtype)
        let out = Rows(result)
        threads.parallel(t * rows) { range in
            scratch(columns * features + w) { memory in
                let line = memory + columns * features
                for index in range {
                    let top = index / rows * h + index % rows * p
                    for (channel, place) in places.enumerated() {
                        for kh in 0..<p {
                            lines[place.part].load(place.row + top + kh, w, into: line)
                            for column in 0..<w {
                                let feature = (channel * p + kh) * p + column % p
                                memory[column / p * features + feature] = line[column]
                            }
                        }
                    }
                    for column in 0..<columns {
                        out.store(
                            index * columns + column, features, memory + column * features)
                    }
                }
            }
        }
        return result
    }

    func unpatchify(_ o: Operation.Unpatchify) -> Tensor {
        let (size, p) = (o.size, o.patch)
        let features = o.x.shape[1]
        let channels = features / (p * p)
        let (rows, columns) = (size.h / p, size.w / p)
        let tokens = Rows(o.x)
        let result = memory.tensor([channels, size.t, size.h, size.w], .f32)
        let out = Rows(result)
        threads.parallel(size.t * rows) { range in
            scratch(features) { line in
                for index in range {
                    let top = index / rows * size.h + index % rows * p
                    for column in 0..<columns {
                        tokens.load(index * columns + column, features, into: line)
                        for channel in 0..<channels {
                            let plane = channel * size.t * size.h + top
                            for k in 0..<p * p {
                                out.floats(plane + k / p)[p * column + k % p] =
                                    line[k * channels + channel]
                            }
                        }
                    }
                }
            }
        }
        return result
    }

    func channelsLast(_ o: Operation.ChannelsLast) -> Tensor {
        let (x, scale, shift) = (o.x, o.scale, o.shift)
        let (channels, t, h, w) = (x.shape[0], x.shape[1], x.shape[2], x.shape[3])
        let lines = Rows(x)
        let result = memory.tensor([t, h, w, channels], o.dtype)
        let out = Rows(result, columns: w * channels)
        threads.parallel(t * h) { range in
            scratch(w * channels + w) { memory in
                let line = memory + w * channels
                for row in range {
                    for channel in 0..<channels {
                        lines.load(channel * t * h + row, w, into: line)
                        for column in 0..<w {
                            memory[column * channels + channel] =
                                line[column] * scale[channel] + shift[channel]
                        }
                    }
                    out.store(row, w * channels, memory)
                }
            }
        }
        return result
    }

    func channelsFirst(_ o: Operation.ChannelsFirst) -> Tensor {
        let (x, scale, shift) = (o.x, o.scale, o.shift)
        let (t, h, w, channels) = (x.shape[0], x.shape[1], x.shape[2], x.shape[3])
        let lines = Rows(x, columns: w * channels)
        let result = memory.tensor([channels, t, h, w], .f32)
        let out = Rows(result)
        threads.parallel(t * h) { range in
            scratch(w * channels) { line in
                for row in range {
                    lines.load(row, w * channels, into: line)
                    for channel in 0..<channels {
                        let target = out.floats(channel * t * h + row)
                        for column in 0..<w {
                            target[column] =
                                line[column * channels + channel] * scale[channel] + shift[channel]
                        }
                    }
                }
            }
        }
        return result
    }

    /// [T, H, W, 2C] → [2T, H, W, C]
    func interleaveTime(_ x: Tensor) -> Tensor {
        let (t, h, w, channels) = (x.shape[0], x.shape[1], x.shape[2], x.shape[3] / 2)
        let result = memory.tensor([2 * t, h, w, channels], x.dtype)
        let bytes = channels * x.dtype.byteCount
        let (from, to) = (x.hostAddress, result.hostAddress)
        threads.parallel(t * h) { range in
            for row in range {
                let (frame, line) = (row / h, row % h)
                for parity in 0..<2 {
                    let target = to + ((2 * frame + parity) * h + line) * w * bytes
                    let source = from + (row * w * 2 + parity) * bytes
                    for column in 0..<w {
                        (target + column * bytes).copyMemory(
                            from: source + 2 * column * bytes, byteCount: bytes)
                    }
                }
            }
        }
        return result
    }

    func concatenate(_ o: Operation.Concatenate) -> Tensor {
        let result = memory.tensor(o.shape, o.parts[0].dtype)
        var target = result.hostAddress
        for part in o.parts {
            target.copyMemory(from: part.hostAddress, byteCount: part.byteCount)
            target += part.byteCount
        }
        return result
    }
}
