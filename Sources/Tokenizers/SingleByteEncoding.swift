// The single-byte encodings as which text is most often misread, as data.

import Ground

/// A single-byte encoding. It decodes every byte, and encodes the 256 scalars that result.
///
/// The Windows code pages are "sloppy": an unassigned byte stands for the Latin-1 control
/// character with the same number, and byte 0x1A stands for U+FFFD, the mark of a byte that was
/// already lost.
struct SingleByteEncoding: Sendable {
    /// Whether unassigned bytes and U+FFFD are represented (the Windows code pages).
    let isSloppy: Bool
    /// Whether this is Mac OS Roman, in which an en dash and a space look like a damaged sequence.
    let isMacRoman: Bool
    /// What bytes 0x80 ... 0xFF decode to.
    let upperHalf: [Unicode.Scalar]
    private let bytes: [Unicode.Scalar: UInt8]

    /// - Parameter upperHalf: the 128 scalars of bytes 0x80 ... 0xFF.
    init(_ upperHalf: String, isSloppy: Bool = false, isMacRoman: Bool = false) {
        self.isSloppy = isSloppy
        self.isMacRoman = isMacRoman
        self.upperHalf = Array(upperHalf.unicodeScalars)
        ensure(
            self.upperHalf.count == 128,
            "SingleByteEncoding: expected 128 scalars, found \(self.upperHalf.count)")
        var bytes = [Unicode.Scalar: UInt8]()
        for (index, scalar) in self.upperHalf.enumerated() { bytes[scalar] = UInt8(0x80 + index) }
        if isSloppy { bytes["\u{fffd}"] = 0x1A }
        self.bytes = bytes
    }

    /// The bytes that decode to `text`, or nil if one of its scalars is not in this encoding.
    func encode(_ text: some Sequence<Unicode.Scalar>) -> [UInt8]? {
        var encoded = [UInt8]()
        for scalar in text {
            if scalar.value < 0x80, !(isSloppy && scalar.value == 0x1A) {
                encoded.append(UInt8(scalar.value))
            } else if let byte = bytes[scalar] {
                encoded.append(byte)
            } else {
                return nil
            }
        }
        return encoded
    }

    /// The encodings in the order in which they are tried.
    static let all: [SingleByteEncoding] = [
        latin1, windows1252,
        SingleByteEncoding(windows1251Upper, isSloppy: true),
        SingleByteEncoding(windows1250Upper, isSloppy: true),
        SingleByteEncoding(windows1253Upper, isSloppy: true),
        SingleByteEncoding(windows1254Upper, isSloppy: true),
        SingleByteEncoding(windows1257Upper, isSloppy: true),
        SingleByteEncoding(iso8859x2Upper),
        SingleByteEncoding(macRomanUpper, isMacRoman: true),
        SingleByteEncoding(cp437Upper),
    ]

    /// ISO 8859-1: byte n is U+00n.
    static let latin1 = SingleByteEncoding(
        String(String.UnicodeScalarView((0x80...0xFF).map { Unicode.Scalar(UInt8($0)) })))
    /// Windows-1252, the usual culprit.
    static let windows1252 = SingleByteEncoding(windows1252Upper, isSloppy: true)

    /// The seven encodings that agree with Latin-1 in spirit: letters above 0xC0, signs below.
    static let latinLike = Array(all[..<7])

    private static let windows1252Upper = """
        €\u{81}‚ƒ„…†‡\u{2c6}‰Š‹Œ\u{8d}Ž\u{8f}\u{90}‘’“”•–—\u{2dc}™š›œ\u{9d}žŸ\u{a0}¡¢£¤¥¦§\
        \u{a8}©ª«¬\u{ad}®\u{af}°±²³\u{b4}µ¶·\u{b8}¹º»¼½¾¿ÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏÐÑÒÓÔÕÖ×ØÙÚÛÜÝÞßàáâãäå\
        æçèéêëìíîïðñòóôõö÷øùúûüýþÿ
        """
    private static let windows1251Upper = """
        ЂЃ‚ѓ„…†‡€‰Љ‹ЊЌЋЏђ‘’“”•–—\u{98}™љ›њќћџ\u{a0}ЎўЈ¤Ґ¦§Ё©Є«¬\u{ad}®Ї°±Ііґµ¶·ё№є»јЅѕїАБВГДЕЖЗ\
        ИЙКЛМНОПРСТУФХЦЧШЩЪЫЬЭЮЯабвгдежзийклмнопрстуфхцчшщъыьэюя
        """
    private static let windows1250Upper = """
        €\u{81}‚\u{83}„…†‡\u{88}‰Š‹ŚŤŽŹ\u{90}‘’“”•–—\u{98}™š›śťžź\u{a0}\u{2c7}\u{2d8}Ł¤Ą¦§\
        \u{a8}©Ş«¬\u{ad}®Ż°±\u{2db}ł\u{b4}µ¶·\u{b8}ąş»Ľ\u{2dd}ľżŔÁÂĂÄĹĆÇČÉĘËĚÍÎĎĐŃŇÓÔŐÖ×ŘŮÚŰÜÝŢ\
        ßŕáâăäĺćçčéęëěíîďđńňóôőö÷řůúűüýţ\u{2d9}
        """
    private static let windows1253Upper = """
        €\u{81}‚ƒ„…†‡\u{88}‰\u{8a}‹\u{8c}\u{8d}\u{8e}\u{8f}\u{90}‘’“”•–—\u{98}™\u{9a}›\u{9c}\
        \u{9d}\u{9e}\u{9f}\u{a0}\u{385}Ά£¤¥¦§\u{a8}©ª«¬\u{ad}®―°±²³\u{384}µ¶·ΈΉΊ»Ό½ΎΏΐΑΒΓΔΕΖΗΘΙ\
        ΚΛΜΝΞΟΠΡÒΣΤΥΦΧΨΩΪΫάέήίΰαβγδεζηθικλμνξοπρςστυφχψωϊϋόύώÿ
        """
    private static let windows1254Upper = """
        €\u{81}‚ƒ„…†‡\u{2c6}‰Š‹Œ\u{8d}\u{8e}\u{8f}\u{90}‘’“”•–—\u{2dc}™š›œ\u{9d}\u{9e}Ÿ\u{a0}¡¢\
        £¤¥¦§\u{a8}©ª«¬\u{ad}®\u{af}°±²³\u{b4}µ¶·\u{b8}¹º»¼½¾¿ÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏĞÑÒÓÔÕÖ×ØÙÚÛÜİŞßà\
        áâãäåæçèéêëìíîïğñòóôõö÷øùúûüışÿ
        """
    private static let windows1257Upper = """
        €\u{81}‚\u{83}„…†‡\u{88}‰\u{8a}‹\u{8c}\u{a8}\u{2c7}\u{b8}\u{90}‘’“”•–—\u{98}™\u{9a}›\
        \u{9c}\u{af}\u{2db}\u{9f}\u{a0}¡¢£¤¥¦§Ø©Ŗ«¬\u{ad}®Æ°±²³\u{b4}µ¶·ø¹ŗ»¼½¾æĄĮĀĆÄÅĘĒČÉŹĖĢĶĪ\
        ĻŠŃŅÓŌÕÖ×ŲŁŚŪÜŻŽßąįāćäåęēčéźėģķīļšńņóōõö÷ųłśūüżž\u{2d9}
        """
    private static let iso8859x2Upper = """
        \u{80}\u{81}\u{82}\u{83}\u{84}\u{85}\u{86}\u{87}\u{88}\u{89}\u{8a}\u{8b}\u{8c}\u{8d}\
        \u{8e}\u{8f}\u{90}\u{91}\u{92}\u{93}\u{94}\u{95}\u{96}\u{97}\u{98}\u{99}\u{9a}\u{9b}\
        \u{9c}\u{9d}\u{9e}\u{9f}\u{a0}Ą\u{2d8}Ł¤ĽŚ§\u{a8}ŠŞŤŹ\u{ad}ŽŻ°ą\u{2db}ł\u{b4}ľś\u{2c7}\
        \u{b8}šşťź\u{2dd}žżŔÁÂĂÄĹĆÇČÉĘËĚÍÎĎĐŃŇÓÔŐÖ×ŘŮÚŰÜÝŢßŕáâăäĺćçčéęëěíîďđńňóôőö÷řůúűüýţ\
        \u{2d9}
        """
    private static let macRomanUpper = """
        ÄÅÇÉÑÖÜáàâäãåçéèêëíìîïñóòôöõúùûü†°¢£§•¶ß®©™\u{b4}\u{a8}≠ÆØ∞±≤≥¥µ∂∑∏π∫ªºΩæø¿¡¬√ƒ≈∆«»…\
        \u{a0}ÀÃÕŒœ–—“”‘’÷◊ÿŸ⁄€‹›ﬁﬂ‡·‚„‰ÂÊÁËÈÍÎÏÌÓÔ\u{f8ff}ÒÚÛÙı\u{2c6}\u{2dc}\u{af}\u{2d8}\
        \u{2d9}\u{2da}\u{b8}\u{2dd}\u{2db}\u{2c7}
        """
    private static let cp437Upper = """
        ÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜ¢£¥₧ƒáíóúñÑªº¿⌐¬½¼¡«»░▒▓│┤╡╢╖╕╣║╗╝╜╛┐└┴┬├─┼╞╟╚╔╩╦╠═╬╧╨╤╥╙╘╒╓\
        ╫╪┘┌█▄▌▐▀αßΓπΣσµτΦΘΩδ∞φε∩≡±≥≤⌠⌡÷≈°∙·√\u{207f}²■\u{a0}
        """
}
