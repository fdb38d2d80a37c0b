//! A session channel: its process, and the data between them.

use std::future::pending;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use bytes::Bytes;
use rustix::process::{Pid, Signal};
use tokio::io::AsyncWriteExt as _;
use tokio::io::unix::AsyncFd;
use tokio::process::{Child, ChildStdin};
use tokio::sync::{mpsc, watch};

use crate::agent::AgentSocket;
use crate::child::Spec;
use crate::forward::{copy_out, pump};
use crate::limits::HANGUP_PATIENCE;
use crate::process::{self, Output, Size, Started, Terminal};
use crate::transport::{ChannelEnd, FromClient, Incoming, OnTheirOwn};

/// Bytes that are read from a terminal at once.
const READ: usize = 32 * 1024;
/// A terminal that no process has open is asked again after this time: `login` opens it
/// twice.
const REOPENED: Duration = Duration::from_millis(20);
/// The time for the reason of an end to get to the client.
const FAREWELL: Duration = Duration::from_secs(1);
/// The exit status of a session that could not begin.
const CANNOT_BEGIN: u32 = 255;

/// An order of the client for a session that runs.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Control {
    /// The terminal has another size.
    Resize(Size),
    /// The processes should get this signal.
    Signal(Signal),
}

/// A session that is about to begin.
pub(crate) struct Session {
    /// This program.
    pub program: PathBuf,
    pub spec: Spec,
    pub terminal: Option<Terminal>,
    pub agent: Option<AgentSocket>,
    pub end: ChannelEnd,
    pub incoming: Incoming,
    pub control: mpsc::Receiver<Control>,
    /// The reason why the connection ends, for the user.
    pub ended: watch::Receiver<Option<String>>,
}

/// The end of a session.
enum Outcome {
    /// The process has ended, and all its output was sent.
    Exited(io::Result<ExitStatus>),
    /// The client has closed the channel.
    Closed,
    /// The server ends the connection.
    Revoked(String),
}

/// The processes' input.
enum Input {
    Pipe(Option<ChildStdin>),
    Terminal,
}

impl Session {
    /// Runs until the process or the channel has ended.
    pub(crate) async fn run(self) {
        let Self {
            program,
            spec,
            terminal,
            agent,
            end,
            incoming,
            control,
            ended,
        } = self;
        let started = process::start(&program, terminal.as_ref());
        let started = started.and_then(|started| Ok((started, process::preamble(&spec)?)));
        let (
            Started {
                mut child,
                mut input,
                output,
            },
            preamble,
        ) = match started {
            Ok(started) => started,
            Err(error) => {
                let text = format!("warren: cannot start a session: {error}\r\n");
                // A client that has gone does not need the reason.
                let _ = end.send(Bytes::from(text), true).await;
                end.exit_status(CANNOT_BEGIN).await;
                end.close().await;
                return;
            }
        };
        // The number of a process that has ended may belong to another one soon: from then
        // on (`exited`) no signal is sent.
        let pid = child
            .id()
            .and_then(|id| i32::try_from(id).ok())
            .and_then(Pid::from_raw);
        let (exited, has_exited) = watch::channel(false);
        let (master, mut pipes) = match output {
            Output::Terminal(master) => (Some(master), None),
            Output::Pipes(output, errors) => (None, Some((output, errors))),
        };
        let master = master.as_ref();
        let feed = async {
            // A process that ended early has said why.
            let _ = input.write_all(&preamble).await;
            let input = match master {
                Some(_) => Input::Terminal,
                None => Input::Pipe(Some(input)),
            };
            feed(input, master, incoming, &end).await;
        };
        let exits = async {
            let status = child.wait().await;
            exited.send_replace(true);
            status
        };
        let drains = async {
            if let Some(master) = master {
                drain_terminal(master, &end, has_exited).await;
            }
            if let Some((output, errors)) = &mut pipes {
                // They end when no process has them open any more.
                tokio::join!(copy_out(output, &end, false), copy_out(errors, &end, true));
            }
        };
        let running = async { tokio::join!(exits, drains).0 };
        let outcome = tokio::select! {
            status = running => Outcome::Exited(status),
            () = feed => Outcome::Closed,
            () = end.closed() => Outcome::Closed,
            text = reason(ended) => Outcome::Revoked(text),
            () = follow(control, master, pid, &exited) => Outcome::Closed,
            () = serve_agent(agent.as_ref(), &end) => Outcome::Closed,
        };
        match outcome {
            Outcome::Exited(status) => report(&end, status).await,
            Outcome::Closed => terminate(child),
            Outcome::Revoked(text) => {
                terminate(child);
                let farewell = async {
                    let text = format!("\r\nwarren: {text}\r\n");
                    let _ = end.send(Bytes::from(text), true).await;
                    end.exit_status(CANNOT_BEGIN).await;
                };
                // A client that takes no more gets none.
                let _ = tokio::time::timeout(FAREWELL, farewell).await;
            }
        }
        end.close().await;
    }
}

/// Waits for the reason why the connection ends.
async fn reason(mut ended: watch::Receiver<Option<String>>) -> String {
    let waited = ended.wait_for(Option::is_some).await;
    let text = waited.ok().and_then(|text| text.clone());
    match text {
        Some(text) => text,
        None => pending().await,
    }
}

/// Gives the data of the client to the process. Returns when the channel is closed.
async fn feed(
    mut input: Input,
    master: Option<&AsyncFd<OwnedFd>>,
    mut incoming: Incoming,
    end: &ChannelEnd,
) {
    while let Some(message) = incoming.recv().await {
        match (message, &mut input, master) {
            (FromClient::Data(data), Input::Terminal, Some(master)) => {
                // Nothing reads any more: the process is about to end.
                let _ = write_terminal(master, &data).await;
                end.consumed(data.len());
            }
            (FromClient::Data(data), Input::Pipe(pipe), _) => {
                if let Some(writer) = pipe
                    && writer.write_all(&data).await.is_err()
                {
                    *pipe = None;
                }
                end.consumed(data.len());
            }
            (FromClient::Eof, Input::Pipe(pipe), _) => *pipe = None,
            (FromClient::Eof | FromClient::Data(_), ..) => {}
        }
    }
}

async fn write_terminal(master: &AsyncFd<OwnedFd>, mut data: &[u8]) -> io::Result<()> {
    while !data.is_empty() {
        let mut guard = master.writable().await?;
        let written = guard.try_io(|fd| Ok(rustix::io::write(fd.get_ref(), data)?));
        if let Ok(written) = written {
            data = data.get(written?..).unwrap_or_default();
        }
    }
    Ok(())
}

/// Sends the output of a terminal, until the process `has_exited` and no more is there.
async fn drain_terminal(
    master: &AsyncFd<OwnedFd>,
    end: &ChannelEnd,
    mut has_exited: watch::Receiver<bool>,
) {
    let mut buffer = vec![0; READ];
    loop {
        match rustix::io::read(master.get_ref(), &mut buffer) {
            Ok(read @ 1..) => {
                let data = Bytes::copy_from_slice(&buffer[..read]);
                if end.send(data, false).await.is_err() {
                    return;
                }
            }
            Err(rustix::io::Errno::INTR) => {}
            _ if *has_exited.borrow() => return,
            Err(rustix::io::Errno::AGAIN) => {
                tokio::select! {
                    guard = master.readable() => match guard {
                        Ok(mut guard) => guard.clear_ready(),
                        Err(_) => return,
                    },
                    _ = has_exited.wait_for(|exited| *exited) => {}
                }
            }
            // No process has it open at the moment.
            _ => {
                let _ = tokio::time::timeout(REOPENED, has_exited.wait_for(|exited| *exited)).await;
            }
        }
    }
}

/// Carries out the orders of the client.
async fn follow(
    mut control: mpsc::Receiver<Control>,
    master: Option<&AsyncFd<OwnedFd>>,
    pid: Option<Pid>,
    exited: &watch::Sender<bool>,
) {
    while let Some(order) = control.recv().await {
        match order {
            Control::Resize(size) => {
                if let Some(master) = master {
                    // The terminal is gone with the process.
                    let _ = rustix::termios::tcsetwinsize(master.get_ref(), size.into());
                }
            }
            Control::Signal(signal) if !*exited.borrow() => kill(pid, signal),
            Control::Signal(_) => {}
        }
    }
    pending().await
}

/// Sends a signal to the processes of a session, or to the first one while it has no group
/// of its own.
fn kill(pid: Option<Pid>, signal: Signal) {
    if let Some(pid) = pid
        && rustix::process::kill_process_group(pid, signal).is_err()
    {
        // It has ended.
        let _ = rustix::process::kill_process(pid, signal);
    }
}

/// Ends the processes of a session. The caller does not wait. One that has ended and was
/// waited for has no number any more, and gets no signal.
fn terminate(mut child: Child) {
    let pid = |child: &Child| {
        let id = child.id().and_then(|id| i32::try_from(id).ok());
        id.and_then(Pid::from_raw)
    };
    kill(pid(&child), Signal::HUP);
    tokio::spawn(async move {
        if tokio::time::timeout(HANGUP_PATIENCE, child.wait())
            .await
            .is_err()
        {
            kill(pid(&child), Signal::KILL);
            // Nothing is left to be done if it fails.
            let _ = child.wait().await;
        }
    });
}

/// Sends the exit status.
async fn report(end: &ChannelEnd, status: io::Result<ExitStatus>) {
    end.eof().await;
    match status {
        Ok(status) => match (
            status.code(),
            status.signal().and_then(Signal::from_named_raw),
        ) {
            (Some(code), _) => end.exit_status(code.unsigned_abs()).await,
            (None, Some(signal)) => end.exit_signal(signal, status.core_dumped()).await,
            (None, None) => end.exit_status(CANNOT_BEGIN).await,
        },
        Err(_) => end.exit_status(CANNOT_BEGIN).await,
    }
}

/// Connects programs of the session with the agent of the client.
async fn serve_agent(agent: Option<&AgentSocket>, end: &ChannelEnd) {
    let Some(agent) = agent else {
        return pending().await;
    };
    let mut connections = OnTheirOwn::default();
    loop {
        tokio::select! {
            program = agent.accept() => match program {
                Ok(program) => {
                    let end = end.clone();
                    connections.spawn(async move {
                        if let Some((end, incoming)) = end.open_agent().await {
                            pump(end, incoming, program).await;
                        }
                    });
                }
                // No descriptors are left at the moment.
                Err(_) => tokio::time::sleep(REOPENED).await,
            },
            () = connections.ended() => {}
        }
    }
}
