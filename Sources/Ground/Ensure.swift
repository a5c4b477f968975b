/// `ensure`: a precondition whose message is printed in optimised builds as well.

/// Ends the program with `message` unless `condition` holds. For what only a mistake in this program
/// can break, such as shapes that do not fit; what a user can cause is a typed error instead.
///
/// Swift's `precondition` traps without its message in optimised builds, and the message, with the
/// operation and both shapes, is what a report of such a failure needs.
@inlinable
@inline(__always)
public func ensure(
    _ condition: @autoclosure () -> Bool, _ message: @autoclosure () -> String,
    file: StaticString = #fileID, line: UInt = #line
) {
    if !condition() { programmingError(message(), file: file, line: line) }
}

/// Ends the program with `message`: `ensure` where no condition is left to test.
@inline(never)
public func programmingError(
    _ message: String, file: StaticString = #fileID, line: UInt = #line
) -> Never {
    fatalError(message, file: file, line: line)
}
