// Element-wise operations.

enum Elementwise {
    static let units: [KernelUnit] = []
}
