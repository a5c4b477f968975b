// Cases of the matrix products.

extension SelfTest {
    static var matmulCases: [SelfTestCase] { [] }
}
