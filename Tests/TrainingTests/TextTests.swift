/// Texts of a data set have the length that the model reads.

import Tensors
import Testing

@testable import Training

@Suite struct TextTests {
    private let rows = Tensor([Float](arrayLiteral: 1, 2, 3, 4, 5, 6), [3, 2])

    @Test func shortTextsGetRowsOfZeros() throws {
        let text = try Text(rows).padded(to: 5)
        #expect(text.rows.shape == [5, 2])
        #expect(text.count == 3)
        #expect(text.rows.floats() == [1, 2, 3, 4, 5, 6, 0, 0, 0, 0])
    }

    @Test func theTypeIsKept() throws {
        let text = try Text(rows.converted(to: .bf16)).padded(to: 4)
        #expect(text.rows.dtype == .bf16)
        #expect(text.rows.floats() == [1, 2, 3, 4, 5, 6, 0, 0])
    }

    @Test func wholeTextsStayAsTheyAre() throws {
        #expect(try Text(rows).padded(to: 3).rows.floats() == rows.floats())
    }

    @Test func longTextsAreRefused() {
        #expect(throws: DataError.self) { try Text(rows).padded(to: 2) }
    }
}
