/// `ensure`: a precondition whose message is printed in optimised builds too.

/// Ends the program with `message` unless `condition` is true. Only for conditions that a mistake in this program can
/// violate, such as shapes that do not fit; what a user can cause is a thrown error instead.
///
/// Swift's `precondition` does not print its message in optimised builds, but a report of such a failure needs it, with
/// the operation and both shapes.
@inlinable
@inline(__always)
public func ensure(
    _ condition: @autoclosure () -> Bool, _ message: @autoclosure () -> String,
    file: StaticString = #fileID, line: UInt = #line
) {
    if !condition() { programmingError(message(), file: file, line: line) }
}

/// Ends the program with `message`, like `ensure` with a false condition.
@inline(never)
public func programmingError(
    _ message: String, file: StaticString = #fileID, line: UInt = #line
) -> Never {
    fatalError(message, file: file, line: line)
}
