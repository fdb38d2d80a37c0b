//! `boringtun-cli`, where it is installed: WireGuard in user space that moves
//! one packet at a time, as a second thing to compare with.
//!
//! It is configured through its socket (the cross-platform interface that
//! `wg` speaks), so that no other tool is needed.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use warren_keys::NodeSecret;

use super::pipeline::TUNNEL_MTU;
use warren_lab::{Host, LabError, PATIENCE, Program, foreign, until};

/// The program's name.
pub const PROGRAM: &str = "boringtun-cli";
const PORT: u16 = 51820;
const INNER: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 98, 0, 1), Ipv4Addr::new(10, 98, 0, 2)];

/// A tunnel between two hosts.
pub struct BoringTun {
    programs: [Program; 2],
    sockets: [PathBuf; 2],
}

impl BoringTun {
    /// Starts both ends and introduces them to each other.
    ///
    /// # Errors
    /// When it is not installed, or does not take its configuration.
    pub fn start(hosts: &[Host; 2]) -> Result<Self, LabError> {
        let binary =
            foreign(PROGRAM).ok_or_else(|| LabError::new(format!("{PROGRAM} is not installed")))?;
        // Its sockets lie in one folder for the whole machine.
        let devices = ["a", "b"].map(|end| format!("bt{end}{}", std::process::id()));
        let program = |end: usize| {
            let arguments = [
                "--foreground",
                "--disable-drop-privileges",
                "--verbosity=error",
                &devices[end],
            ];
            Program::start(
                &hosts[end],
                PROGRAM,
                &binary,
                &arguments.map(str::to_owned),
                &[],
            )
        };
        let mut tunnel = Self {
            programs: [program(0)?, program(1)?],
            sockets: devices
                .each_ref()
                .map(|device| format!("/var/run/wireguard/{device}.sock").into()),
        };
        // Keys of a network that lasts minutes and carries nothing.
        let secrets = [[1; 32], [2; 32]];
        for (end, device) in devices.iter().enumerate() {
            let other = 1 - end;
            let configuration = format!(
                "set=1\nprivate_key={}\nlisten_port={PORT}\npublic_key={}\n\
                 endpoint={}:{PORT}\nallowed_ip={}/32\n\n",
                hex(&secrets[end]),
                hex(NodeSecret::from_bytes(&secrets[other]).public().as_bytes()),
                hosts[other].address(),
                INNER[other],
            );
            tunnel.configure(end, &configuration)?;
            let host = &hosts[end];
            let address = format!("{}/24", INNER[end]);
            host.run("ip", &["addr", "add", &address, "dev", device])?;
            let mtu = TUNNEL_MTU.to_string();
            host.run("ip", &["link", "set", device, "mtu", &mtu, "up"])?;
        }
        Ok(tunnel)
    }

    fn configure(&mut self, end: usize, configuration: &str) -> Result<(), LabError> {
        let mut stream = until("boringtun-cli to listen", PATIENCE, || {
            self.programs[end].check_alive()?;
            Ok::<_, LabError>(UnixStream::connect(&self.sockets[end])?)
        })?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(configuration.as_bytes())?;
        let mut answer = Vec::new();
        let mut buffer = [0; 256];
        while !answer.ends_with(b"\n\n") {
            let len = stream.read(&mut buffer)?;
            if len == 0 {
                break;
            }
            answer.extend_from_slice(&buffer[..len]);
        }
        // It takes the end of the connection for the end of a command.
        drop(stream.shutdown(Shutdown::Write));
        let answer = String::from_utf8_lossy(&answer);
        if answer.trim() == "errno=0" {
            return Ok(());
        }
        Err(LabError::new(format!(
            "boringtun-cli does not take its configuration: {}",
            answer.trim()
        )))
    }

    /// The address of the second end inside the tunnel.
    pub fn target() -> Ipv4Addr {
        INNER[1]
    }

    /// Both processes.
    pub fn pids(&self) -> [u32; 2] {
        self.programs.each_ref().map(Program::pid)
    }
}

impl Drop for BoringTun {
    fn drop(&mut self) {
        // Killed programs leave their sockets behind.
        for socket in &self.sockets {
            drop(std::fs::remove_file(socket));
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
