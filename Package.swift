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

let system = Target.Dependency.product(name: "SystemPackage", package: "swift-system")
let arguments = Target.Dependency.product(name: "ArgumentParser", package: "swift-argument-parser")

let libraries = [
    "Ground", "Tensors", "CPU", "CUDA", "Devices", "Checkpoints", "Tokenizers", "Models",
    "Diffusion", "Media", "Families", "Runs", "Catalog", "Delivery", "Verification", "Benchmarks",
    "Quality", "Terminal",
]

let package = Package(
    name: "turbodiffusion",
    products: [
        .executable(name: "turbodiffusion", targets: ["turbodiffusion"]),
        .executable(name: "nano-study", targets: ["NanoStudy"]),
    ] + libraries.map { .library(name: $0, targets: [$0]) },
    dependencies: [
        .package(url: "https://github.com/apple/swift-argument-parser", exact: "1.8.2"),
        .package(url: "https://github.com/apple/swift-system", exact: "1.8.1"),
    ],
    targets: [
        .target(name: "Ground", dependencies: [system], swiftSettings: numeric),
        .target(name: "Tensors", dependencies: ["Ground"], swiftSettings: numeric),
        .target(name: "CDrivers", publicHeadersPath: "include"),
        .target(name: "CProcess", publicHeadersPath: "include"),
        .target(
            name: "CUDASources", exclude: ["Kernels"], publicHeadersPath: "include",
            cSettings: [.unsafeFlags(["-std=gnu23"])]),
        .target(
            name: "CPU", dependencies: ["Ground", "Tensors", "CDrivers"], swiftSettings: numeric),
        .target(
            name: "CUDA", dependencies: ["Ground", "Tensors", "CDrivers", "CUDASources", system],
            swiftSettings: numeric),
        .target(
            name: "Devices", dependencies: ["Ground", "Tensors", "CPU", "CUDA"],
            swiftSettings: numeric),
        .target(
            name: "Checkpoints", dependencies: ["Ground", "Tensors", system],
            swiftSettings: numeric),
        .target(name: "Tokenizers", dependencies: ["Ground", system], swiftSettings: swift),
        .target(
            name: "Models", dependencies: ["Ground", "Tensors", "Checkpoints"],
            swiftSettings: numeric),
        .target(name: "Diffusion", dependencies: ["Tensors"], swiftSettings: numeric),
        .target(
            name: "Media", dependencies: ["CProcess", "Ground", system], swiftSettings: numeric),
        .target(
            name: "Families",
            dependencies: ["Ground", "Tensors", "Checkpoints", "Models", "Diffusion"],
            swiftSettings: swift),
        .target(
            name: "Runs",
            dependencies: [
                "Ground", "Tensors", "Checkpoints", "Tokenizers", "Models", "Diffusion", "Media",
                "Families", system,
            ],
            swiftSettings: swift),
        .target(
            name: "Catalog",
            dependencies: ["Ground", "Tensors", "Checkpoints", "Models", "Families", system],
            swiftSettings: swift),
        .target(
            name: "Delivery",
            dependencies: [
                "Ground", "Tensors", "Checkpoints", "Models", "Media", "Families", "Runs",
                "Catalog", system,
            ],
            swiftSettings: swift),
        .target(
            name: "Verification",
            dependencies: [
                "Ground", "Tensors", "Checkpoints", "Tokenizers", "Models", "Diffusion", "Media",
                "Families", "Runs", "Catalog", system,
            ],
            swiftSettings: numeric),
        .target(
            name: "Benchmarks",
            dependencies: [
                "Ground", "Tensors", "CPU", "CUDA", "Checkpoints", "Tokenizers", "Models", "Media",
                "Families", "Runs", "Catalog", system,
            ],
            swiftSettings: swift),
        .target(
            name: "Quality",
            dependencies: ["Ground", "Tensors", "Checkpoints", "Models", "Media", system],
            swiftSettings: numeric),
        .target(name: "Terminal", dependencies: ["Ground", system], swiftSettings: swift),
        .executableTarget(
            name: "NanoStudy",
            dependencies: [
                "Ground", "Tensors", "CPU", "Devices", "Checkpoints", "Media", "Families", "Runs",
                "Catalog", "Quality", "Terminal", system, arguments,
            ],
            path: "Studies/nano/Sources", swiftSettings: numeric),
        .executableTarget(
            name: "turbodiffusion",
            dependencies: [
                "CProcess", "Ground", "Tensors", "CPU", "CUDA", "Checkpoints", "Tokenizers",
                "Models",
                "Diffusion", "Media", "Families", "Runs", "Catalog", "Delivery", "Verification",
                "Benchmarks", "Quality", "Devices", "Terminal", system, arguments,
            ],
            swiftSettings: swift),
        .testTarget(name: "ArchitectureTests", swiftSettings: swift),
        .testTarget(
            name: "GroundTests", dependencies: ["Ground", system], swiftSettings: swift),
        .testTarget(name: "TensorsTests", dependencies: ["Tensors"], swiftSettings: swift),
        .testTarget(name: "CPUTests", dependencies: ["CPU", "Tensors"], swiftSettings: swift),
        .testTarget(
            name: "CUDATests", dependencies: ["Ground", "CUDA", "CPU", "Tensors", system],
            swiftSettings: swift),
        .testTarget(
            name: "DevicesTests", dependencies: ["Ground", "Devices", "Tensors", "CPU", "CUDA"],
            swiftSettings: swift),
        .testTarget(
            name: "TerminalTests", dependencies: ["Terminal", system], swiftSettings: swift),
        .testTarget(
            name: "CheckpointsTests", dependencies: ["Ground", "Checkpoints", "Tensors"],
            swiftSettings: swift),
        .testTarget(name: "TokenizersTests", dependencies: ["Tokenizers"], swiftSettings: swift),
        .testTarget(
            name: "ModelsTests", dependencies: ["Models", "Checkpoints", "CPU", "Tensors"],
            swiftSettings: swift),
        .testTarget(
            name: "DiffusionTests", dependencies: ["Diffusion", "CPU", "Tensors"],
            swiftSettings: swift),
        .testTarget(
            name: "MediaTests", dependencies: ["CProcess", "Media", "Ground", system],
            swiftSettings: swift),
        .testTarget(
            name: "FuzzTests",
            dependencies: [
                "Ground", "Media", "Tokenizers", "Models", "Families", "Runs", "Catalog",
                "Delivery",
            ], exclude: ["Corpus"], swiftSettings: swift),
        .testTarget(
            name: "RunsTests",
            dependencies: [
                "Runs", "Families", "Catalog", "Models", "CPU", "Tensors", "Checkpoints", "Media",
            ],
            swiftSettings: swift),
        .testTarget(
            name: "BenchmarksTests",
            dependencies: [
                "Ground", "Benchmarks", "CPU", "Tensors", "Checkpoints", "Tokenizers", "Models",
                "Families", "Runs", "Catalog",
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
                "Catalog", "Delivery", "Media", "Benchmarks", "Devices", "Ground", system,
                arguments,
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
