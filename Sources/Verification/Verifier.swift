/// Runs every case of a folder of fixtures on one backend.

public import Tensors

/// Checks a backend, and everything built on it, against fixtures of the reference implementation.
public final class Verifier {
    private let folder: FixtureFolder
    let device: any Backend
    /// Whether results may use the tolerance of engines that keep more precision than the reference.
    private let acceptsLoose: Bool

    /// - Parameters:
    ///   - path: the folder.
    ///   - device: the backend to check.
    ///   - acceptsLoose: false for a backend that is the definition, true for one that may keep more precision.
    /// - Throws: a one-line error if the folder does not exist or contains no fixtures.
    public init(folder path: String, on device: any Backend, acceptsLoose: Bool) throws {
        folder = try FixtureFolder(path)
        self.device = device
        self.acceptsLoose = acceptsLoose
    }

    /// The cases that `run` would run, in its order, with nothing checked yet.
    public static func cases(in folder: String, filter: String? = nil) throws -> [CaseResult] {
        items(of: try FixtureFolder(folder), filter).map {
            CaseResult(
                group: $0.group, name: $0.name, operation: $0.operation, checks: [], seconds: 0)
        }
    }

    /// Runs the cases whose "group/name" or operation contains `filter`; nil: all.
    /// - Parameters:
    ///   - first: how many of them to leave out.
    ///   - each: called with each result as it comes.
    @discardableResult
    public func run(
        filter: String? = nil, from first: Int = 0, each: (CaseResult) -> Void = { _ in }
    ) -> [CaseResult] {
        var results: [CaseResult] = []
        for item in Self.items(of: folder, filter).dropFirst(first) {
            let result = run(item)
            each(result)
            results.append(result)
        }
        return results
    }

    /// A case, or another document that can be checked.
    private struct Item {
        var group, name, operation: String
        var check: (any Backend, Checks) throws -> Void

        func matches(_ filter: String) -> Bool {
            "\(group)/\(name)".contains(filter) || operation.contains(filter)
        }
    }

    private func run(_ item: Item) -> CaseResult {
        let checks = Checks(acceptsLoose: acceptsLoose)
        let start = ContinuousClock.now
        do {
            try item.check(device, checks)
            try device.synchronize()
        } catch {
            checks.fail("case", "\(error)")
        }
        return CaseResult(
            group: item.group, name: item.name, operation: item.operation, checks: checks.results,
            seconds: (ContinuousClock.now - start) / .seconds(1))
    }

    private static func items(of folder: FixtureFolder, _ filter: String?) -> [Item] {
        items(of: folder).filter { item in filter.map(item.matches) ?? true }
    }

    private static func items(of folder: FixtureFolder) -> [Item] {
        folder.files.compactMap { path in
            let parts = path.split(separator: "/").map(String.init)
            let group = parts.dropLast().joined(separator: "/")
            let name = parts.last!
            let stem = String(name[..<name.lastIndex(of: ".")!])
            if let check = documentCheck(path, in: folder) {
                return Item(group: group, name: stem, operation: stem, check: check)
            }
            guard name.hasSuffix(".json") else { return nil }
            let json: JSON
            do {
                json = try JSON(path: folder.absolute(path))
            } catch {
                return Item(group: group, name: stem, operation: "unreadable") { _, _ in
                    throw error
                }
            }
            guard let operation = json["op"]?.string else { return nil }
            return Item(
                group: json["group"]?.string ?? group, name: json["name"]?.string ?? stem,
                operation: operation
            ) { device, checks in
                let fixture = try Fixture(json, at: path, in: folder)
                guard let check = operationChecks[operation] ?? derivativeCheck(operation) else {
                    throw FixtureError("unknown operation '\(operation)'")
                }
                if trains(operation), !device.supportsTraining {
                    for name in fixture.expectedNames {
                        checks.skip(name, "\(device.name) has no kernels for gradients")
                    }
                    return
                }
                try check(fixture, device, checks)
                checks.finish(fixture)
            }
        }
    }
}

/// Runs one case on a device.
typealias OperationCheck = @Sendable (Fixture, any Backend, Checks) throws -> Void

/// The check of each operation that a case may name.
private let operationChecks: [String: OperationCheck] = [
    "sparse_linear_attention": checkSparseLinearAttention,
    "wan21_t2v_forward": checkTransformer,
    "wan22_i2v_forward": checkTransformer,
    "t2v_end_to_end": checkTextToVideo,
    "i2v_end_to_end": checkImageToVideo,
    "i2v_image_preprocess": checkImagePreprocessing,
    "i2v_make_y": checkConditioning,
    "int8_linear": checkInt8Linear,
    "int8_block_quant": checkInt8Quantization,
    "norms": checkNorms,
    "activations": checkActivations,
    "half_round": checkHalfRounding,
    "cross_attention": checkCrossAttention,
    "fp8_e4m3_rn_satfinite": checkFloat8,
    "patchify": checkPatchify,
    "rope3d_freqs": checkRotaryTable,
    "rope3d": checkRotary,
    "time_sinusoid": checkTimeSinusoid,
    "euler_sample_cfg": checkGuidedSampler,
    "unipc_sample_cfg": checkGuidedSampler,
    "wan_unipc_sample_cfg": checkGuidedSampler,
    "rcm_sample_analytic": checkAnalyticSampler,
    "rcm_sample_dit": checkDistilledSampler,
    "rcm_sample_i2v_switch": checkExpertSwitch,
    "umt5_encode": checkTextEncoder,
    "umt5_encode_text": checkTextEncoder,
    "t5_relative_position_bucket": checkPositionBuckets,
    "vae_decode": checkDecoder,
    "vae_encode": checkEncoder,
    "sparse_linear_attention_vjp": checkSparseReverse,
    "sparse_linear_attention_jvp": checkSparseForward,
    "time_embedding_vjp": checkTimeReverse,
    "time_embedding_jvp": checkTimeForward,
    "wan21_t2v_vjp": checkTransformerReverse,
    "wan21_t2v_jvp": checkTransformerForward,
    "rcm_student_F_jvp": checkStudentField,
    "rcm_scm_step": checkContinuousStep,
    "rcm_dcm_step": checkDiscreteStep,
    "rcm_dmd_step": checkDistributionStep,
    "rcm_critic_step": checkCriticStep,
    "rcm_student_step": checkJointStep,
    "rcm_schedule": checkSchedule,
    "sla_whitebox_step": checkWhiteBoxStep,
    "fused_adamw": checkAdam,
    "fused_adamw_resume": checkAdamResume,
    "clip_grad_norm": checkClipping,
    "force_finite": checkForceFinite,
    "ema_beta": checkAverageWeight,
    "ema_update": checkAverage,
    "lr_schedule": checkLearningRate,
    "lr_schedule_factors": checkLearningRate,
    "lognormal_time": checkLogNormal,
    "uniform_shift_time": checkUniformShift,
    "dcm_times": checkDiscreteTimes,
    "time_conversions": checkTimeConversions,
    "trigflow_scaling": checkTrigScaling,
    "dcp_tensors": checkTrainingState,
    "dcp_to_pth": checkExport,
    "negative_embedding": checkNegativeEmbedding,
    "webdataset_shards": checkShards,
    "webdataset_rejected": checkRejectedShards,
    "sla_train_run": checkWhiteBoxRun,
    "rcm_train_run": checkRCMRun,
]

/// Whether a case computes derivatives or moves parameters.
private func trains(_ operation: String) -> Bool {
    ["_vjp", "_jvp", "_step", "_train_run"].contains { operation.hasSuffix($0) }
        || [
            "fused_adamw", "fused_adamw_resume", "clip_grad_norm", "ema_update",
        ].contains(operation)
}

/// The derivative of a composition of operations: `…_vjp` in reverse, `…_jvp` in forward mode.
private func derivativeCheck(_ operation: String) -> OperationCheck? {
    if operation.hasSuffix("_vjp") { return checkReverse }
    if operation.hasSuffix("_jvp") { return checkForward }
    return nil
}
