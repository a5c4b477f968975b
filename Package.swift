// swift-tools-version: 6.2
import PackageDescription

let swift: [SwiftSetting] = [
    .swiftLanguageMode(.v6),
    .enableUpcomingFeature("ExistentialAny"),
    .enableUpcomingFeature("MemberImportVisibility"),
    .enableUpcomingFeature("InternalImportsByDefault"),
]
/// The numeric rooms are compiled for AVX2 + FMA + F16C (every x86-64 server and desktop since 2013).
let numeric: [SwiftSetting] = swift + [.unsafeFlags(["-Xcc", "-march=x86-64-v3"])]

let package = Package(
    name: "turbodiffusion",
    platforms: [.macOS(.v15)],
    products: [
        .executable(name: "turbodiffusion", targets: ["turbodiffusion"]),
        .executable(name: "nano-study", targets: ["NanoStudy"]),
    ],
    dependencies: [
        .package(url: "https://github.com/apple/swift-argument-parser", from: "1.8.2"),
        .package(url: "https://github.com/apple/swift-system", from: "1.8.1"),
        .package(url: "https://github.com/swiftlang/swift-subprocess", from: "1.0.2", traits: []),
    ],
    targets: [
        .target(name: "Tensors", swiftSettings: numeric),
        .target(name: "CDrivers", publicHeadersPath: "include"),
        .target(
            name: "CUDASources", exclude: ["Kernels"], publicHeadersPath: "include",
            cSettings: [.unsafeFlags(["-std=gnu23"])]),
        .target(name: "CPU", dependencies: ["Tensors", "CDrivers"], swiftSettings: numeric),
        .target(
            name: "CUDA", dependencies: ["Tensors", "CDrivers", "CUDASources"],
            swiftSettings: numeric),
        .target(name: "Checkpoints", dependencies: ["Tensors"], swiftSettings: numeric),
        .target(name: "Tokenizers", swiftSettings: swift),
        .target(name: "Models", dependencies: ["Tensors", "Checkpoints"], swiftSettings: numeric),
        .target(name: "Diffusion", dependencies: ["Tensors"], swiftSettings: numeric),
        .target(
            name: "Media",
            dependencies: [.product(name: "Subprocess", package: "swift-subprocess")],
            swiftSettings: numeric),
        .target(
            name: "Families", dependencies: ["Tensors", "Checkpoints", "Models", "Diffusion"],
            swiftSettings: swift),
        .target(
            name: "Runs",
            dependencies: [
                "Tensors", "Checkpoints", "Tokenizers", "Models", "Diffusion", "Media", "Families",
            ],
            swiftSettings: swift),
        .target(
            name: "Catalog",
            dependencies: [
                "Tensors", "Checkpoints", "Models", "Families",
                .product(name: "SystemPackage", package: "swift-system"),
            ],
            swiftSettings: swift),
        .target(
            name: "Delivery",
            dependencies: [
                "Tensors", "Checkpoints", "Models", "Media", "Families", "Runs", "Catalog",
                .product(name: "SystemPackage", package: "swift-system"),
            ],
            swiftSettings: swift),
        .target(
            name: "Verification",
            dependencies: [
                "Tensors", "Checkpoints", "Tokenizers", "Models", "Diffusion", "Media", "Families",
                "Runs", "Catalog", .product(name: "SystemPackage", package: "swift-system"),
            ],
            swiftSettings: numeric),
        .target(
            name: "Benchmarks",
            dependencies: [
                "Tensors", "CPU", "CUDA", "Checkpoints", "Tokenizers", "Models", "Media",
                "Families", "Runs", "Catalog",
            ],
            swiftSettings: swift),
        .target(
            name: "Quality", dependencies: ["Tensors", "Checkpoints", "Models", "Media"],
            swiftSettings: numeric),
        .executableTarget(
            name: "NanoStudy",
            dependencies: [
                "Tensors", "CPU", "CUDA", "Checkpoints", "Media", "Families", "Runs", "Catalog",
                "Quality", .product(name: "ArgumentParser", package: "swift-argument-parser"),
            ],
            path: "Studies/nano/Sources", swiftSettings: numeric),
        .executableTarget(
            name: "turbodiffusion",
            dependencies: [
                "Tensors", "CPU", "CUDA", "Checkpoints", "Tokenizers", "Models", "Diffusion",
                "Media", "Runs", "Catalog", "Delivery", "Families", "Verification", "Benchmarks",
                "Quality",
                .product(name: "ArgumentParser", package: "swift-argument-parser"),
            ],
            swiftSettings: swift),
        .testTarget(name: "ArchitectureTests", swiftSettings: swift),
        .testTarget(name: "TensorsTests", dependencies: ["Tensors"], swiftSettings: swift),
        .testTarget(name: "CPUTests", dependencies: ["CPU", "Tensors"], swiftSettings: swift),
        .testTarget(
            name: "CUDATests", dependencies: ["CUDA", "CPU", "Tensors"], swiftSettings: swift),
        .testTarget(
            name: "CheckpointsTests", dependencies: ["Checkpoints", "Tensors"],
            swiftSettings: swift),
        .testTarget(name: "TokenizersTests", dependencies: ["Tokenizers"], swiftSettings: swift),
        .testTarget(
            name: "ModelsTests", dependencies: ["Models", "Checkpoints", "CPU", "Tensors"],
            swiftSettings: swift),
        .testTarget(
            name: "DiffusionTests", dependencies: ["Diffusion", "CPU", "Tensors"],
            swiftSettings: swift),
        .testTarget(
            name: "MediaTests",
            dependencies: ["Media", .product(name: "Subprocess", package: "swift-subprocess")],
            swiftSettings: swift),
        .testTarget(
            name: "RunsTests",
            dependencies: [
                "Runs", "Families", "Catalog", "Models", "CPU", "Tensors", "Checkpoints", "Media",
            ],
            swiftSettings: swift),
        .testTarget(
            name: "BenchmarksTests",
            dependencies: [
                "Benchmarks", "CPU", "Tensors", "Checkpoints", "Tokenizers", "Models", "Families",
                "Runs", "Catalog",
            ],
            swiftSettings: swift),
        .testTarget(
            name: "CatalogTests",
            dependencies: ["Catalog", "Families", "Models", "Checkpoints", "Tensors"],
            swiftSettings: swift),
        .testTarget(
            name: "DeliveryTests",
            dependencies: [
                "Delivery", "Runs", "Catalog", "Families", "Media", "CPU", "Tensors",
            ],
            exclude: ["video-0.1.0.json"], swiftSettings: swift),
        .testTarget(
            name: "CommandTests",
            dependencies: [
                "turbodiffusion", "CPU", "Tensors", "Checkpoints", "Models", "Runs", "Families",
                "Catalog", "Delivery", "Media", "Benchmarks",
                .product(name: "ArgumentParser", package: "swift-argument-parser"),
            ],
            exclude: ["Help"], swiftSettings: swift),
        .testTarget(
            name: "VerificationTests",
            dependencies: ["Verification", "CPU", "Tensors"], swiftSettings: swift),
        .testTarget(
            name: "QualityTests",
            dependencies: ["Quality", "CPU", "Tensors", "Checkpoints", "Media"],
            swiftSettings: swift),
        .testTarget(
            name: "NanoStudyTests",
            dependencies: [
                "NanoStudy", "Quality", "CPU", "Tensors", "Catalog", "Families", "Runs",
            ],
            path: "Studies/nano/Tests", swiftSettings: swift),
    ]
)
