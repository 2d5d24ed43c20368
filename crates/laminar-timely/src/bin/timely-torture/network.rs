//! Processes in network namespaces of their own, on one bridge, so that the link of one of them can be cut. Linux only, as root,
//! with `ip` of iproute2. Nothing outside of the namespaces is changed, and they go when this does.

use std::path::Path;
use std::process::Command;

const PORT: u16 = 7100;

/// A bridge, and a namespace with one link to it for each process.
pub struct Network {
    /// Begins the names of the namespaces.
    name: String,
    processes: usize,
}

impl Network {
    pub fn new(processes: usize) -> Result<Self, String> {
        // From here on it is taken apart again, whatever fails.
        let network = Self { name: format!("torture-{}", std::process::id()), processes };
        let switch = network.switch();
        ip(&["netns", "add", &switch])?;
        ip(&["-n", &switch, "link", "add", "bridge", "type", "bridge"])?;
        ip(&["-n", &switch, "link", "set", "bridge", "up"])?;
        for process in 0..processes {
            let (space, port) = (network.space(process), port(process));
            ip(&["netns", "add", &space])?;
            let link = ["link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &space];
            ip(&[&["-n", &switch][..], &link].concat())?;
            ip(&["-n", &switch, "link", "set", &port, "master", "bridge", "up"])?;
            let address = format!("{}/24", host(process));
            ip(&["-n", &space, "addr", "add", &address, "dev", "eth0"])?;
            ip(&["-n", &space, "link", "set", "eth0", "up"])?;
            ip(&["-n", &space, "link", "set", "lo", "up"])?;
        }
        Ok(network)
    }

    fn switch(&self) -> String {
        format!("{}-switch", self.name)
    }

    fn space(&self, process: usize) -> String {
        format!("{}-{process}", self.name)
    }

    /// Where each process listens.
    pub fn addresses(&self) -> Vec<String> {
        (0..self.processes).map(|process| format!("{}:{PORT}", host(process))).collect()
    }

    /// A program in the namespace of a process.
    pub fn command(&self, process: usize, program: &Path) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.space(process)]).arg(program);
        command
    }

    /// Cuts the link of a process: nothing arrives any more, and nobody is told.
    pub fn cut(&self, process: usize) -> Result<(), String> {
        ip(&["-n", &self.switch(), "link", "set", &port(process), "down"])
    }

    /// Joins it again.
    pub fn join(&self, process: usize) -> Result<(), String> {
        ip(&["-n", &self.switch(), "link", "set", &port(process), "up"])
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for process in 0..self.processes {
            let _ = ip(&["netns", "del", &self.space(process)]);
        }
        let _ = ip(&["netns", "del", &self.switch()]);
    }
}

fn port(process: usize) -> String {
    format!("port{process}")
}

fn host(process: usize) -> String {
    format!("10.77.0.{}", process + 1)
}

fn ip(arguments: &[&str]) -> Result<(), String> {
    let line = arguments.join(" ");
    let output = Command::new("ip").args(arguments).output().map_err(|e| format!("ip {line}: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("ip {line}: {}; cutting links needs root and iproute2", said.trim()))
}
