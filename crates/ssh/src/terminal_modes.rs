//! The modes of a terminal, from their numbers on the wire (RFC 4254 section 8, RFC 8160).

use rustix::termios::{
    ControlModes, InputModes, LocalModes, OutputModes, SpecialCodeIndex, Termios,
};

/// A mode that a client asks for: its number and its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mode {
    pub number: u8,
    pub value: u32,
}

/// The value of a special character that is off.
const OFF: u32 = 255;

/// Sets the modes that this system has; others are left as they are.
pub(crate) fn apply(settings: &mut Termios, modes: &[Mode]) {
    for mode in modes {
        let is_on = mode.value != 0;
        if let Some(index) = special(mode.number) {
            // 0 disables a special character on this system.
            let code = u8::try_from(mode.value).unwrap_or(0);
            settings.special_codes[index] = if mode.value == OFF { 0 } else { code };
        } else if let Some(flag) = input(mode.number) {
            settings.input_modes.set(flag, is_on);
        } else if let Some(flag) = local(mode.number) {
            settings.local_modes.set(flag, is_on);
        } else if let Some(flag) = output(mode.number) {
            settings.output_modes.set(flag, is_on);
        } else if let Some(flag) = control(mode.number) {
            settings.control_modes.set(flag, is_on);
        }
    }
}

fn special(number: u8) -> Option<SpecialCodeIndex> {
    Some(match number {
        1 => SpecialCodeIndex::VINTR,
        2 => SpecialCodeIndex::VQUIT,
        3 => SpecialCodeIndex::VERASE,
        4 => SpecialCodeIndex::VKILL,
        5 => SpecialCodeIndex::VEOF,
        6 => SpecialCodeIndex::VEOL,
        7 => SpecialCodeIndex::VEOL2,
        8 => SpecialCodeIndex::VSTART,
        9 => SpecialCodeIndex::VSTOP,
        10 => SpecialCodeIndex::VSUSP,
        12 => SpecialCodeIndex::VREPRINT,
        13 => SpecialCodeIndex::VWERASE,
        14 => SpecialCodeIndex::VLNEXT,
        18 => SpecialCodeIndex::VDISCARD,
        _ => return None,
    })
}

fn input(number: u8) -> Option<InputModes> {
    Some(match number {
        30 => InputModes::IGNPAR,
        31 => InputModes::PARMRK,
        32 => InputModes::INPCK,
        33 => InputModes::ISTRIP,
        34 => InputModes::INLCR,
        35 => InputModes::IGNCR,
        36 => InputModes::ICRNL,
        37 => InputModes::IUCLC,
        38 => InputModes::IXON,
        39 => InputModes::IXANY,
        40 => InputModes::IXOFF,
        41 => InputModes::IMAXBEL,
        42 => InputModes::IUTF8,
        _ => return None,
    })
}

fn local(number: u8) -> Option<LocalModes> {
    Some(match number {
        50 => LocalModes::ISIG,
        51 => LocalModes::ICANON,
        52 => LocalModes::XCASE,
        53 => LocalModes::ECHO,
        54 => LocalModes::ECHOE,
        55 => LocalModes::ECHOK,
        56 => LocalModes::ECHONL,
        57 => LocalModes::NOFLSH,
        58 => LocalModes::TOSTOP,
        59 => LocalModes::IEXTEN,
        60 => LocalModes::ECHOCTL,
        61 => LocalModes::ECHOKE,
        62 => LocalModes::PENDIN,
        _ => return None,
    })
}

fn output(number: u8) -> Option<OutputModes> {
    Some(match number {
        70 => OutputModes::OPOST,
        71 => OutputModes::OLCUC,
        72 => OutputModes::ONLCR,
        73 => OutputModes::OCRNL,
        74 => OutputModes::ONOCR,
        75 => OutputModes::ONLRET,
        _ => return None,
    })
}

fn control(number: u8) -> Option<ControlModes> {
    Some(match number {
        90 => ControlModes::CS7,
        91 => ControlModes::CS8,
        92 => ControlModes::PARENB,
        93 => ControlModes::PARODD,
        _ => return None,
    })
}
