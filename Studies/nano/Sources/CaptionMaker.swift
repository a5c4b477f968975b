/// More captions of the kind that the file of held-out ones has: the same attributes, words and forms of sentences.

import Ground
import Quality

/// Draws captions, always the same ones in the same order. A shape only does what it does in the held-out captions.
struct CaptionMaker {
    private var random: SplitMix64

    init(seed: UInt64 = 1) { random = SplitMix64(seed: seed) }

    /// The given captions, then new ones until there are `count`; no prompt comes twice.
    static func extending(_ known: [Caption], to count: Int) -> [Caption] {
        var captions = Array(known.prefix(count))
        var prompts = Set(known.map(\.prompt))
        var maker = CaptionMaker()
        while captions.count < count {
            let caption = maker.next()
            if prompts.insert(caption.prompt).inserted { captions.append(caption) }
        }
        return captions
    }

    /// The next caption.
    mutating func next() -> Caption {
        let (shape, motion) = pick(Self.actions)
        let words = [
            shape, pick(Attribute.color.classes), pick(Attribute.size.classes),
            pick(Attribute.material.classes), motion, pick(Attribute.floor.classes),
            pick(Attribute.sky.classes), pick(Attribute.camera.classes),
        ]
        let answers = zip(Attribute.allCases, words).map { attribute, word in
            attribute.classes.firstIndex(of: word)!
        }
        return Caption(prompt: sentence(words), answers: answers)
    }

    // MARK: Sentences

    /// words: the classes of all attributes, in their order
    private mutating func sentence(_ words: [String]) -> String {
        let said = words.enumerated().map { index, word in
            switch index {
            case 4: pick(Self.motions(words[0])[word]!)
            case 5: pick(Self.floors[word]!)
            default: pick(Self.synonyms[word] ?? [word])
            }
        }
        let (noun, color, size, material) = (said[0], said[1], said[2], said[3])
        let (sky, camera) = (said[6], "the camera " + said[7])
        let article = color.hasPrefix("o") ? "an" : "a"
        let object =
            chance(7)
            ? "\(article) \(color) \(noun), \(size) and \(material),"
            : "a \(size) \(material) \(color) \(noun)"
        let event = "\(object) \(said[4]) on \(said[5])"
        switch random.next() % 20 {
        case 0..<11:
            return capitalised("\(event) \(sky)\(pick([" while ", ", ", " and "]))\(camera).")
        case 11..<14: return capitalised("\(sky), \(event) while \(camera).")
        case 14..<16: return capitalised("\(camera) as \(event) \(sky).")
        case 16..<18:
            let start = pick(["3D render of", "Video:", "A clip of", "A video of"])
            return "\(start) \(event) \(sky), \(camera)."
        default: return capitalised("\(event) \(sky). ") + capitalised("\(camera).")
        }
    }

    private func capitalised(_ text: String) -> String {
        text.prefix(1).uppercased() + text.dropFirst()
    }

    private mutating func pick<T>(_ choices: [T]) -> T {
        choices[Int(random.next() % UInt64(choices.count))]
    }

    /// True once in `count` times.
    private mutating func chance(_ count: UInt64) -> Bool { random.next() % count == 0 }

    // MARK: Words

    /// What each shape does in the held-out captions.
    static let actions: [(shape: String, motion: String)] = [
        ("sphere", "away"), ("sphere", "right"), ("sphere", "grow"), ("sphere", "circle"),
        ("cone", "circle"), ("cone", "away"), ("cone", "right"), ("cone", "grow"),
        ("cube", "bounce"), ("cube", "spin"), ("cube", "circle"),
        ("cylinder", "jump"), ("cylinder", "fall"), ("cylinder", "away"),
    ]

    private static func motions(_ shape: String) -> [String: [String]] {
        let goes = shape == "sphere" || shape == "cylinder" ? "rolls" : "slides"
        return [
            "right": [
                "\(goes) to the right", "\(goes) right", "moves to the right",
                "moves from left to right",
            ],
            "away": [
                "\(goes) away from the camera", "\(goes) away from the viewer",
                "\(goes) away into the distance", "moves away from the viewer",
            ],
            "bounce": ["bounces up and down", "keeps bouncing", "bounces"],
            "jump": ["jumps into the air", "jumps once", "hops up and lands again"],
            "circle": ["moves in a circle", "circles around", "travels in circles"],
            "grow": ["grows", "gets bigger", "grows bigger", "expands"],
            "spin": ["spins in place", "rotates", "spins around"],
            "fall": ["falls from the sky", "drops from above", "falls onto the floor"],
        ]
    }

    private static let floors = [
        "checkered": [
            "a checkered floor", "a chessboard floor", "a black and white tiled floor",
        ],
        "grey": ["a grey floor", "a gray floor", "a concrete floor"],
        "green": ["a green floor", "green grass", "a green lawn"],
        "brown": ["a brown floor", "brown ground", "a wooden floor"],
    ]

    private static let synonyms = [
        "sphere": ["sphere", "ball"], "cube": ["cube", "box"],
        "cyan": ["cyan", "turquoise"], "purple": ["purple", "violet"],
        "small": ["small", "little", "tiny"], "large": ["large", "big", "huge"],
        "matte": ["matte", "dull", "rubber"], "shiny": ["shiny", "glossy", "polished"],
        "day": ["in daylight", "on a sunny day", "under a blue sky", "during the day"],
        "sunset": ["at sunset", "in the evening glow", "under an orange sky"],
        "night": ["at night", "in the dark of night", "under a dark night sky"],
        "static": ["stays still", "is static", "does not move"],
        "pan_left": ["pans left", "pans to the left", "slowly pans left"],
        "pan_right": ["pans right", "pans to the right", "slowly pans right"],
        "orbit": ["orbits", "slowly orbits", "orbits around the scene"],
        "zoom_in": ["zooms in", "slowly zooms in", "moves closer"],
        "zoom_out": ["zooms out", "slowly zooms out", "pulls back"],
    ]
}
