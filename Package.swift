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

/// Tests are not optimised: what takes time in them is the rooms, which are.
let tests: [SwiftSetting] = swift + [.unsafeFlags(["-Onone"])]

let system = Target.Dependency.product(name: "SystemPackage", package: "swift-system")
let hummingbird = Target.Dependency.product(name: "Hummingbird", package: "hummingbird")
let nio = Target.Dependency.product(name: "NIOCore", package: "swift-nio")
let httpTypes = Target.Dependency.product(name: "HTTPTypes", package: "swift-http-types")
let logging = Target.Dependency.product(name: "Logging", package: "swift-log")
let lifecycle = Target.Dependency.product(
    name: "ServiceLifecycle", package: "swift-service-lifecycle")
let arguments = Target.Dependency.product(name: "ArgumentParser", package: "swift-argument-parser")

let libraries = [
    "Ground", "Tensors", "CPU", "CUDA", "Devices", "Checkpoints", "Tokenizers", "Models",
    "Diffusion", "Media", "Families", "Runs", "Catalog", "Delivery", "Sessions", "Jobs", "Service",
    "Verification", "Benchmarks", "Quality", "Terminal", "Interactive", "Training", "Downloads",
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
        // Without traits: they would bring the whole of Foundation, and ICU's 40 MB with it.
        .package(
            url: "https://github.com/hummingbird-project/hummingbird", exact: "2.28.1", traits: []),
        .package(url: "https://github.com/apple/swift-nio", exact: "2.101.2"),
        .package(url: "https://github.com/apple/swift-http-types", exact: "1.8.0", traits: []),
        .package(url: "https://github.com/apple/swift-log", exact: "1.16.2"),
        .package(
            url: "https://github.com/swift-server/swift-service-lifecycle", exact: "2.13.0"),
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
            name: "CPU", dependencies: ["Ground", "Tensors", "CDrivers"],
            swiftSettings: numeric),
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
        // libcurl's functions are variadic too.
        .target(name: "CCurl", publicHeadersPath: "include"),
        .target(
            name: "Downloads", dependencies: ["CCurl", "Ground", system], swiftSettings: swift),
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
            name: "Sessions",
            dependencies: [
                "Ground", "Tensors", "Checkpoints", "Media", "Families", "Runs", "Catalog",
                "Delivery", "Devices", system,
            ],
            swiftSettings: swift),
        // SQLite is linked statically: programs run where it is not installed.
        .target(
            name: "CSQLite", publicHeadersPath: "include",
            linkerSettings: [.linkedLibrary(":libsqlite3.a")]),
        .target(
            name: "Jobs",
            dependencies: ["CSQLite", "Ground", "Runs"],
            swiftSettings: swift),
        .target(
            name: "ServiceResources", exclude: ["Page", "openapi.json"],
            publicHeadersPath: "include", cSettings: [.unsafeFlags(["-std=gnu23"])]),
        .target(
            name: "Service",
            dependencies: [
                "Ground", "Tensors", "Checkpoints", "Media", "Families", "Runs", "Catalog",
                "Delivery", "Devices", "Sessions", "Jobs", "ServiceResources", system, hummingbird,
                nio, httpTypes, logging, lifecycle,
            ],
            swiftSettings: swift),
        .target(
            name: "Training",
            dependencies: ["Ground", "Tensors", "Checkpoints", "Models", system],
            swiftSettings: numeric),
        .target(
            name: "Verification",
            dependencies: [
                "Ground", "Tensors", "Checkpoints", "Tokenizers", "Models", "Diffusion", "Media",
                "Families", "Runs", "Catalog", "Training", system,
            ],
            swiftSettings: numeric),
        .target(
            name: "Benchmarks",
            dependencies: [
                "Ground", "Tensors", "CPU", "CUDA", "Checkpoints", "Tokenizers", "Models", "Media",
                "Families", "Runs", "Catalog", "Training", system,
            ],
            swiftSettings: swift),
        .target(
            name: "Quality",
            dependencies: ["Ground", "Tensors", "Checkpoints", "Models", "Media", system],
            swiftSettings: numeric),
        .target(name: "Terminal", dependencies: ["Ground", system], swiftSettings: swift),
        // libedit's functions are variadic: only C can call them.
        .target(name: "CLineEditor", publicHeadersPath: "include"),
        .target(
            name: "Interactive",
            dependencies: [
                "CLineEditor", "Ground", "Media", "Families", "Runs", "Catalog", "Delivery",
                "Sessions", "Terminal", system,
            ],
            swiftSettings: swift),
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
                "Diffusion", "Media", "Families", "Runs", "Catalog", "Delivery", "Sessions",
                "Service", "Interactive", "Verification", "Benchmarks", "Quality", "Devices",
                "Terminal", "Training", "Downloads", system, arguments,
            ],
            swiftSettings: swift),
        .testTarget(name: "ArchitectureTests", swiftSettings: tests),
        .testTarget(
            name: "GroundTests", dependencies: ["Ground", system], swiftSettings: tests),
        // Optimised: it measures what an operation costs.
        .testTarget(name: "TensorsTests", dependencies: ["Tensors"], swiftSettings: swift),
        .testTarget(name: "CPUTests", dependencies: ["CPU", "Tensors"], swiftSettings: tests),
        .testTarget(
            name: "CUDATests", dependencies: ["Ground", "CUDA", "CPU", "Tensors", system],
            swiftSettings: tests),
        .testTarget(
            name: "DevicesTests", dependencies: ["Ground", "Devices", "Tensors", "CPU", "CUDA"],
            swiftSettings: tests),
        .testTarget(
            name: "TerminalTests", dependencies: ["Terminal", system], swiftSettings: tests),
        .testTarget(
            name: "CheckpointsTests", dependencies: ["Ground", "Checkpoints", "Tensors"],
            swiftSettings: tests),
        .testTarget(name: "TokenizersTests", dependencies: ["Tokenizers"], swiftSettings: tests),
        .testTarget(
            name: "ModelsTests", dependencies: ["Models", "Checkpoints", "CPU", "Tensors"],
            swiftSettings: tests),
        .testTarget(
            name: "DiffusionTests", dependencies: ["Diffusion", "CPU", "Tensors"],
            swiftSettings: tests),
        .testTarget(
            name: "MediaTests", dependencies: ["CProcess", "Media", "Ground", system],
            swiftSettings: tests),
        .testTarget(
            name: "FuzzTests",
            dependencies: [
                "Ground", "Media", "Tokenizers", "Models", "Families", "Runs", "Catalog",
                "Delivery", "Downloads", "Service", "Training",
            ], exclude: ["Corpus"], swiftSettings: tests),
        .testTarget(
            name: "RunsTests",
            dependencies: [
                "Runs", "Families", "Catalog", "Models", "CPU", "Tensors", "Checkpoints", "Media",
                "Ground", system,
            ],
            swiftSettings: tests),
        .testTarget(
            name: "BenchmarksTests",
            dependencies: [
                "Ground", "Benchmarks", "CPU", "Tensors", "Checkpoints", "Tokenizers", "Models",
                "Families", "Runs", "Catalog", "Training",
            ],
            swiftSettings: tests),
        .testTarget(
            name: "CatalogTests",
            dependencies: ["Catalog", "Families", "Models", "Checkpoints", "Tensors"],
            swiftSettings: tests),
        .testTarget(
            name: "DownloadsTests", dependencies: ["Downloads", "Ground", system],
            swiftSettings: tests),
        .testTarget(
            name: "DeliveryTests",
            dependencies: [
                "Delivery", "Runs", "Catalog", "Families", "Media", "CPU", "Tensors",
            ],
            exclude: ["video-0.1.0.json"], swiftSettings: tests),
        .testTarget(
            name: "SessionsTests",
            dependencies: ["Sessions", "Runs", "Catalog", "Families", "Media", "Devices"],
            swiftSettings: tests),
        .testTarget(
            name: "InteractiveTests",
            dependencies: ["Interactive", "Families", "Runs", "Sessions", "Media"],
            swiftSettings: tests),
        .testTarget(name: "JobsTests", dependencies: ["Jobs", "Runs"], swiftSettings: tests),
        .testTarget(
            name: "ServiceTests",
            dependencies: ["Service", "Jobs", "Runs", "Families", httpTypes, hummingbird],
            swiftSettings: tests),
        .testTarget(
            name: "CommandTests",
            dependencies: [
                "turbodiffusion", "CPU", "Tensors", "Checkpoints", "Models", "Runs", "Families",
                "Catalog", "Delivery", "Media", "Benchmarks", "Devices", "Ground", "Service",
                "Training", system, arguments,
            ],
            exclude: ["Help"], swiftSettings: tests),
        .testTarget(
            name: "TrainingTests",
            dependencies: [
                "Training", "Ground", "CPU", "Tensors", "Checkpoints", "Models", system,
            ],
            swiftSettings: swift),
        .testTarget(
            name: "VerificationTests",
            dependencies: [
                "Verification", "Training", "Ground", "CPU", "Tensors", "Checkpoints", system,
            ],
            swiftSettings: tests),
        .testTarget(
            name: "QualityTests",
            dependencies: ["Quality", "CPU", "Tensors", "Checkpoints", "Media"],
            swiftSettings: tests),
        .testTarget(
            name: "NanoStudyTests",
            dependencies: [
                "NanoStudy", "Quality", "CPU", "Tensors", "Catalog", "Families", "Runs",
            ],
            path: "Studies/nano/Tests", swiftSettings: tests),
    ]
)
