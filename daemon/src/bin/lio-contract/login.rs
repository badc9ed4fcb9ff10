//! As much of an iSCSI host as it takes to log in without a secret.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

/// The length of a header (RFC 7143, 11.2.1).
const HEADER: usize = 48;

/// A session, or why there is none: the class and the detail of the answer (RFC 7143, 11.13.5).
pub enum Answer {
    /// Logged in.
    In(TcpStream),
    /// Refused.
    Refused(u8, u8),
    /// The connection was closed without an answer.
    Closed,
}

/// What the target would ask for otherwise, one answer after another.
const PARAMETERS: [&str; 14] = [
    "HeaderDigest=None",
    "DataDigest=None",
    "DefaultTime2Wait=2",
    "DefaultTime2Retain=0",
    "ErrorRecoveryLevel=0",
    "InitialR2T=No",
    "ImmediateData=Yes",
    "MaxBurstLength=262144",
    "FirstBurstLength=65536",
    "MaxOutstandingR2T=1",
    "MaxConnections=1",
    "DataPDUInOrder=Yes",
    "DataSequenceInOrder=Yes",
    "MaxRecvDataSegmentLength=262144",
];

/// A host logs in: straight to the operational stage, and from there to full features.
pub fn login(port: u16, host: &str, target: &str) -> Result<Answer> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).context("connecting")?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    let mut keys = format!("InitiatorName={host}\0SessionType=Normal\0TargetName={target}\0");
    PARAMETERS.iter().for_each(|p| keys.extend([p, "\0"]));
    let mut pdu = vec![0u8; HEADER];
    pdu[0] = 0x43; // Login request, immediate.
    pdu[1] = 0x87; // Transit from operational negotiation to full features.
    // The ISID, of the random kind, so that no two sessions are one.
    pdu[8] = 0x80;
    pdu[9..14].copy_from_slice(&uuid::Uuid::now_v7().as_bytes()[11..16]);
    pdu[19] = 1; // Task tag.
    pdu[27] = 1; // CmdSN.
    for _ in 0..4 {
        pdu.truncate(HEADER);
        pdu[5..8].copy_from_slice(&(keys.len() as u32).to_be_bytes()[1..]);
        pdu.extend(keys.as_bytes());
        pdu.resize(pdu.len().next_multiple_of(4), 0);
        stream.write_all(&pdu)?;
        let mut answer = [0u8; HEADER];
        if stream.read_exact(&mut answer).is_err() {
            return Ok(Answer::Closed);
        }
        ensure!(answer[0] & 0x3f == 0x23, "not a login response: {:#x}", answer[0]);
        if answer[36] != 0 {
            return Ok(Answer::Refused(answer[36], answer[37]));
        }
        let length = u32::from_be_bytes([0, answer[5], answer[6], answer[7]]) as usize;
        let mut text = vec![0u8; length.next_multiple_of(4)];
        stream.read_exact(&mut text)?;
        if answer[1] & 0x83 == 0x83 {
            return Ok(Answer::In(stream));
        }
        // More to say than fits one answer: its handle, its number, and nothing new from here.
        pdu[14..16].copy_from_slice(&answer[14..16]);
        let number = u32::from_be_bytes([answer[24], answer[25], answer[26], answer[27]]);
        pdu[28..32].copy_from_slice(&number.wrapping_add(1).to_be_bytes());
        keys.clear();
    }
    bail!("the login does not come to an end")
}

/// Whether a session has ended: the other side has closed the connection.
pub fn ended(mut session: &TcpStream) -> Result<bool> {
    session.set_read_timeout(Some(Duration::from_millis(300)))?;
    let mut pings = [0u8; HEADER];
    loop {
        match session.read(&mut pings) {
            Ok(0) => return Ok(true),
            Ok(_) => {}
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return Ok(false),
            Err(_) => return Ok(true),
        }
    }
}
