/// The operations that `doctor --times` names are rows of the operation table.

import Testing
import Verification

@testable import turbodiffusion

@Suite struct CardTimesTests {
    @Test func everyOperationIsARowThatIsTimed() {
        let names = OperationTable(seed: 1).names(.fast, filter: nil)
        for operation in CardTimes.operations {
            #expect(names.count { $0 == operation.name } == 1, "\(operation.name)")
        }
    }
}
