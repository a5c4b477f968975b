/// Operations that only training asks for: the parts of the rules, and the optimiser.

import Ground

extension Operation {
    /// What the rules of other operations are made of, and what moves parameters. `Backend.supportsTraining` says
    /// whether a machine has them.
    public enum Training {
        // LinearGradients.swift
        case inputGradient(InputGradient)
        case weightGradient(WeightGradient)
        // NormGradients.swift
        case normGradient(NormGradient)
        case normTangent(NormTangent)
        case rotate(Rotate)
        // ElementwiseGradients.swift
        case activate(Activate)
        case scaleColumns(ScaleColumns)
        case columnSum(ColumnSum)
        // AttentionGradients.swift
        case attentionGradient(AttentionGradient)
        case attentionTangent(AttentionTangent)
        case sparseAttentionGradient(SparseAttentionGradient)
        case sparseAttentionTangent(SparseAttentionTangent)
        // TokenGradients.swift
        case patchifyGradient(PatchifyGradient)
        case unpatchifyGradient(UnpatchifyGradient)
        case swapRows(SwapRows)
        case padRows(PadRows)
        // Optimization.swift
        case cast(Cast)
        case dot(Dot)
        case adamW(AdamW)
        case adamWList(AdamWList)
        case squareSum(SquareSum)

        public var facts: any OperationFacts {
            switch self {
            case .inputGradient(let o): o
            case .weightGradient(let o): o
            case .normGradient(let o): o
            case .normTangent(let o): o
            case .rotate(let o): o
            case .activate(let o): o
            case .scaleColumns(let o): o
            case .columnSum(let o): o
            case .attentionGradient(let o): o
            case .attentionTangent(let o): o
            case .sparseAttentionGradient(let o): o
            case .sparseAttentionTangent(let o): o
            case .patchifyGradient(let o): o
            case .unpatchifyGradient(let o): o
            case .cast(let o): o
            case .dot(let o): o
            case .swapRows(let o): o
            case .padRows(let o): o
            case .adamW(let o): o
            case .adamWList(let o): o
            case .squareSum(let o): o
            }
        }
    }
}
