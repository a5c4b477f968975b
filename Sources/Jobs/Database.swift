/// SQLite as this room needs it: statements with values, rows, transactions.

import CSQLite
import Ground

/// What the database says.
public struct DatabaseError: Error, Sendable, Hashable, CustomStringConvertible {
    public let path: String
    public let code: Int32
    public let reason: String

    public var description: String { "\(path.printable): \(reason)" }
}

/// A value of a column.
enum SQLValue: Hashable {
    case null
    case integer(Int)
    case real(Double)
    case text(String)

    init(_ value: Int?) { self = value.map(SQLValue.integer) ?? .null }
    init(_ value: Double?) { self = value.map(SQLValue.real) ?? .null }
    init(_ value: String?) { self = value.map(SQLValue.text) ?? .null }
}

/// One row of a result, read by the numbers of its columns.
struct Row {
    fileprivate let statement: OpaquePointer

    func isNull(_ column: Int32) -> Bool { sqlite3_column_type(statement, column) == SQLITE_NULL }
    func integer(_ column: Int32) -> Int? {
        isNull(column) ? nil : Int(sqlite3_column_int64(statement, column))
    }
    func real(_ column: Int32) -> Double? {
        isNull(column) ? nil : sqlite3_column_double(statement, column)
    }
    func text(_ column: Int32) -> String? {
        guard let bytes = sqlite3_column_text(statement, column) else { return nil }
        let count = Int(sqlite3_column_bytes(statement, column))
        return String(decoding: UnsafeBufferPointer(start: bytes, count: count), as: UTF8.self)
    }
}

/// An open database. Not for two threads at once.
final class Database {
    private let path: String
    private var handle: OpaquePointer?
    private var statements: [String: OpaquePointer] = [:]

    /// Opens a file, or makes it. What was committed is on the disk; a process that dies leaves the last commit.
    init(_ path: String) throws(DatabaseError) {
        self.path = path
        let flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX
        let code = sqlite3_open_v2(path, &handle, flags, nil)
        guard code == SQLITE_OK else {
            let error = failure(code)
            sqlite3_close_v2(handle)
            throw error
        }
        sqlite3_busy_timeout(handle, 5000)
        try run("PRAGMA journal_mode = WAL")
        try run("PRAGMA synchronous = FULL")
        try run("PRAGMA foreign_keys = ON")
    }

    deinit {
        for statement in statements.values { sqlite3_finalize(statement) }
        sqlite3_close_v2(handle)
    }

    /// Carries out a statement; values take the places of its question marks.
    /// - Parameter row: is given each row of the result.
    func run(_ sql: String, _ values: [SQLValue] = [], row: (Row) -> Void = { _ in })
        throws(DatabaseError)
    {
        let statement = try prepared(sql)
        defer {
            sqlite3_reset(statement)
            sqlite3_clear_bindings(statement)
        }
        for (index, value) in values.enumerated() { try bind(value, statement, Int32(index + 1)) }
        while true {
            switch sqlite3_step(statement) {
            case SQLITE_ROW: row(Row(statement: statement))
            case SQLITE_DONE: return
            case let code: throw failure(code)
            }
        }
    }

    /// Rows that the last statement has changed.
    var changes: Int { Int(sqlite3_changes64(handle)) }

    /// All of it or nothing.
    func transaction<Result>(_ body: () throws -> Result) throws -> Result {
        try run("BEGIN IMMEDIATE")
        do {
            let result = try body()
            try run("COMMIT")
            return result
        } catch {
            try? run("ROLLBACK")
            throw error
        }
    }

    private func prepared(_ sql: String) throws(DatabaseError) -> OpaquePointer {
        if let known = statements[sql] { return known }
        var statement: OpaquePointer?
        let code = sqlite3_prepare_v3(
            handle, sql, -1, UInt32(SQLITE_PREPARE_PERSISTENT), &statement, nil)
        guard code == SQLITE_OK, let statement else { throw failure(code) }
        statements[sql] = statement
        return statement
    }

    private func bind(_ value: SQLValue, _ statement: OpaquePointer, _ index: Int32)
        throws(DatabaseError)
    {
        let code =
            switch value {
            case .null: sqlite3_bind_null(statement, index)
            case .integer(let number): sqlite3_bind_int64(statement, index, Int64(number))
            case .real(let number): sqlite3_bind_double(statement, index, number)
            case .text(let text):
                csqlite_bind_text(statement, index, text, Int32(text.utf8.count))
            }
        guard code == SQLITE_OK else { throw failure(code) }
    }

    private func failure(_ code: Int32) -> DatabaseError {
        let reason = handle.flatMap { sqlite3_errmsg($0) } ?? sqlite3_errstr(code)
        return DatabaseError(
            path: path, code: code, reason: reason.map { String(cString: $0) } ?? "error \(code)")
    }
}
