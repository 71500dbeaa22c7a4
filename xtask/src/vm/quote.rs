//! A command as a line of shell that means exactly these words.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

/// A script that becomes the command. Arguments are bytes, as the kernel takes them.
pub(super) fn script(command: &[OsString]) -> Vec<u8> {
    let mut text = Vec::from(b"exec");
    for word in command {
        text.push(b' ');
        quote(word.as_bytes(), &mut text);
    }
    text.push(b'\n');
    text
}

/// Between single quotes nothing is special but the quote itself.
fn quote(word: &[u8], out: &mut Vec<u8>) {
    out.push(b'\'');
    for &byte in word {
        match byte {
            b'\'' => out.extend(br"'\''"),
            _ => out.push(byte),
        }
    }
    out.push(b'\'');
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;
    use std::process::Command;

    use super::*;

    /// A real shell takes the script apart again.
    fn through_a_shell(words: &[&[u8]]) -> Vec<Vec<u8>> {
        let mut command: Vec<OsString> =
            ["sh", "-c", "for word do printf '%s\\0' \"$word\"; done", "x"].map(OsString::from).into();
        command.extend(words.iter().map(|word| OsString::from_vec((*word).into())));
        let script = OsString::from_vec(script(&command));
        let said = Command::new("sh").arg("-c").arg(script).output().unwrap();
        assert!(said.status.success(), "{said:?}");
        let mut parts: Vec<Vec<u8>> = said.stdout.split(|&byte| byte == 0).map(Into::into).collect();
        assert_eq!(parts.pop().as_deref(), Some(&b""[..]));
        parts
    }

    #[test]
    fn words_come_out_as_they_went_in() {
        let words: &[&[u8]] = &[
            b"plain",
            b"two words",
            b"",
            b"a 'quoted' one",
            b"\"$HOME\" `id` \\ ! * ? ~ # ; | & > <",
            b"a\nnewline\n",
            b"'",
            b"''",
            b"-n",
            b"not \xff UTF-8",
            b"",
        ];
        assert_eq!(through_a_shell(words), words);
    }

    #[test]
    fn the_script_becomes_the_command() {
        assert_eq!(script(&["a b".into(), "c'd".into()]), b"exec 'a b' 'c'\\''d'\n");
    }
}
