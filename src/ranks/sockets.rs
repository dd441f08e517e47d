//! Messages between processes that no MPI brought together, over TCP: all others are connected to process 0. Tasks, hashes
//! and single numbers go here; gradients do not, for which there is NCCL.
//!
//! A frame is its kind, its length in 8 bytes, the least first, and its bytes. A process that ends in order says so before
//! it closes its connection; one whose connection ends without that is lost, and so are all.

#[cfg(feature = "faults")]
use super::world::HostSum;
use super::world::World;
use super::{Error, Launched};
use crate::error::Kind;
use fttrain_kernels::sys::keep_alive;
use serde::{Deserialize, Serialize};
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

/// How long the others are waited for: what torchrun grants its own processes.
pub(super) const PATIENCE: Duration = Duration::from_secs(300);
/// How long one that has connected may take to say who it is.
const HELLO_PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(100);
/// How long one address of process 0's host is tried: another one may answer.
const KNOCK: Duration = Duration::from_secs(5);
/// How long the other side may leave what is sent untaken.
const STALLED: Duration = Duration::from_secs(120);
/// A hello is read before anything is known of who sends it.
const MOST_OF_HELLO: u64 = 4096;

/// How processes end before their time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// One of them broke off, with this code.
    Aborted(u8),
    /// The connection to this process is gone.
    Lost(usize),
    /// This process itself broke off.
    Own(u8),
}

impl End {
    /// The exit code of the program.
    pub(super) fn code(self) -> u8 {
        match self {
            Self::Aborted(code) | Self::Own(code) => code,
            Self::Lost(_) => Kind::Resource as u8,
        }
    }
}

/// Ends this process: the program's way in a run, a test's in a test.
pub(super) trait Ending: Send + Sync {
    fn end(&self, how: End) -> !;
}

/// All processes: process 0 has all others as its peers, each of them process 0.
pub(super) struct Sockets {
    rank: usize,
    size: usize,
    /// In the order of their numbers.
    peers: Vec<Peer>,
    ending: Arc<dyn Ending>,
}

struct Peer {
    rank: usize,
    to: TcpStream,
    /// What a thread of its own has read: it also notices, while this process computes, that the other is gone.
    from: Receiver<Vec<u8>>,
}

/// What a process says of itself when it connects.
#[derive(Serialize, Deserialize)]
struct Hello {
    program: String,
    run: String,
    rank: usize,
    size: usize,
}

/// Messages are read by the same version alone.
const PROGRAM: &str = concat!("fttrain ", env!("CARGO_PKG_VERSION"));

const MESSAGE: u8 = 0;
const ABORT: u8 = 1;
const BYE: u8 = 2;
/// In place of the word that all are there.
const STRANGER: u8 = 3;

impl Sockets {
    /// Meets the others.
    ///
    /// # Errors
    /// Nothing says where; the place cannot be had; they do not come.
    pub(super) fn join(
        launched: &Launched,
        patience: Duration,
        ending: Arc<dyn Ending>,
    ) -> Result<Self, Error> {
        let Launched { rank, size, variable, .. } = *launched;
        let Some((host, port)) = &launched.meeting else { return Err(Error::Nowhere { variable }) };
        let at = format!("{host}:{port}");
        let until = Instant::now() + patience;
        let connected = if rank == 0 {
            gather(launched, (host, *port), until).map_err(|cause| (cause, "waited for the others"))
        } else {
            reach(launched, (host, *port), until)
                .map(|one| vec![(0, one)])
                .map_err(|cause| (cause, "looked for process 0"))
        };
        let connected =
            connected.map_err(|(cause, what)| Error::Meeting { rank, size, what, at: at.clone(), cause })?;
        let listen = || -> io::Result<Vec<Peer>> {
            let copy = |(rank, to): &(usize, TcpStream)| Ok((*rank, to.try_clone()?));
            let all = Arc::new(connected.iter().map(copy).collect::<io::Result<Vec<_>>>()?);
            let peer = |(rank, to): &(usize, TcpStream)| {
                let (sender, from) = channel();
                let reader = Reader { from: to.try_clone()?, rank: *rank, to: sender };
                let (all, ending) = (Arc::clone(&all), Arc::clone(&ending));
                thread::Builder::new()
                    .name(format!("from {rank}"))
                    .spawn(move || reader.listen(&all, &*ending))?;
                Ok(Peer { rank: *rank, to: to.try_clone()?, from })
            };
            connected.iter().map(peer).collect()
        };
        let peers = listen();
        let peers = peers.map_err(|cause| Error::Meeting {
            rank,
            size,
            what: "listened to the others",
            at,
            cause,
        })?;
        Ok(Self { rank, size, peers, ending })
    }

    fn send(&self, peer: &Peer, bytes: &[u8]) {
        if write_frame(&peer.to, MESSAGE, bytes).is_err() {
            self.ending.end(End::Lost(peer.rank))
        }
    }

    fn receive(&self, peer: &Peer) -> Vec<u8> {
        match peer.from.recv() {
            Ok(bytes) => bytes,
            // It ended in order, while this process counts on it.
            Err(_) => self.ending.end(End::Lost(peer.rank)),
        }
    }

    /// What all processes say, in their order.
    fn gather(&self, own: &[u8]) -> Vec<Vec<u8>> {
        let mut all: Vec<Vec<u8>> = Vec::new();
        if self.rank == 0 {
            all.push(own.to_vec());
            all.extend(self.peers.iter().map(|peer| self.receive(peer)));
        } else {
            self.peers.iter().for_each(|peer| self.send(peer, own));
        }
        let mut bytes = serde_json::to_vec(&all).unwrap_or_default();
        self.broadcast(&mut bytes);
        serde_json::from_slice(&bytes).unwrap_or_default()
    }

    fn reduce(&self, values: &mut [f64], both: fn(f64, f64) -> f64) {
        let read = |bytes: &[u8]| -> Vec<f64> {
            bytes.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b)).collect()
        };
        let mut bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>();
        if self.rank == 0 {
            for peer in &self.peers {
                for (value, other) in values.iter_mut().zip(read(&self.receive(peer))) {
                    *value = both(*value, other);
                }
            }
            bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        } else {
            self.peers.iter().for_each(|peer| self.send(peer, &bytes));
        }
        self.broadcast(&mut bytes);
        values.copy_from_slice(&read(&bytes)[..values.len()]);
    }
}

impl World for Sockets {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn gather_here(&self, value: u64) -> (Vec<u64>, usize) {
        let own = (machine(), value);
        let all = self.gather(&serde_json::to_vec(&own).unwrap_or_default());
        let read = |bytes: &Vec<u8>| serde_json::from_slice::<(String, u64)>(bytes).unwrap_or_default();
        let all: Vec<(usize, (String, u64))> = all.iter().map(read).enumerate().collect();
        let here: Vec<_> = all.iter().filter(|(_, (machine, _))| *machine == own.0).collect();
        let index = here.iter().position(|(rank, _)| *rank == self.rank).unwrap_or_default();
        (here.iter().map(|(_, (_, value))| *value).collect(), index)
    }

    fn broadcast(&self, bytes: &mut Vec<u8>) {
        for peer in &self.peers {
            if self.rank == 0 {
                self.send(peer, bytes);
            } else {
                *bytes = self.receive(peer);
            }
        }
    }

    fn sum(&self, values: &mut [f64]) {
        self.reduce(values, |a, b| a + b);
    }

    fn largest(&self, values: &mut [f64]) {
        self.reduce(values, f64::max);
    }

    fn sums_on_host(&self) -> bool {
        cfg!(feature = "faults")
    }

    #[cfg(feature = "faults")]
    fn begin_sum(&self, values: Vec<f32>) -> Box<dyn HostSum + '_> {
        let mut wide: Vec<f64> = values.into_iter().map(f64::from).collect();
        self.sum(&mut wide);
        #[allow(clippy::cast_possible_truncation)] // Gradients are of f32.
        Box::new(Done(wide.into_iter().map(|value| value as f32).collect()))
    }

    #[cfg(not(feature = "faults"))]
    fn begin_sum(&self, _: Vec<f32>) -> Box<dyn super::world::HostSum + '_> {
        unreachable!("refused before the first step: `sums_on_host`")
    }

    fn abort(&self, code: u8) -> ! {
        for peer in &self.peers {
            // One that is gone needs no word.
            let _ = write_frame(&peer.to, ABORT, &[code]);
        }
        self.ending.end(End::Own(code))
    }
}

/// For the tests of everything around the sums, which need no GPU.
#[cfg(feature = "faults")]
struct Done(Vec<f32>);

#[cfg(feature = "faults")]
impl HostSum for Done {
    fn progress(&mut self) {}

    fn wait(self: Box<Self>) -> Vec<f32> {
        self.0
    }
}

impl Drop for Sockets {
    fn drop(&mut self) {
        for peer in &self.peers {
            let _ = write_frame(&peer.to, BYE, &[]);
        }
    }
}

/// A thread that hears one of the others.
struct Reader {
    from: TcpStream,
    rank: usize,
    to: Sender<Vec<u8>>,
}

impl Reader {
    /// Reads frames for as long as the connection stands. Where it ends before its time, process 0 tells `all` the others.
    fn listen(mut self, all: &[(usize, TcpStream)], ending: &dyn Ending) {
        let end = loop {
            match read_frame(&mut self.from, u64::MAX) {
                Ok((MESSAGE, bytes)) => {
                    if self.to.send(bytes).is_err() {
                        return;
                    }
                }
                Ok((ABORT, code)) => break End::Aborted(code.first().copied().unwrap_or(1)),
                Ok((BYE, _)) => return,
                Ok(_) | Err(_) => break End::Lost(self.rank),
            }
        };
        for (_, other) in all.iter().filter(|(rank, _)| *rank != self.rank) {
            let _ = write_frame(other, ABORT, &[end.code()]);
        }
        ending.end(end)
    }
}

/// Process 0 waits until all others have said who they are.
fn gather(
    launched: &Launched,
    (host, port): (&str, u16),
    until: Instant,
) -> io::Result<Vec<(usize, TcpStream)>> {
    // A host's own name may stand for an address that only it can reach: then on all of them.
    let is_own = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    let any = |address: IpAddr| TcpListener::bind((address, port));
    let listener = if is_own {
        TcpListener::bind((host, port))?
    } else {
        any(Ipv6Addr::UNSPECIFIED.into()).or_else(|_| any(Ipv4Addr::UNSPECIFIED.into()))?
    };
    listener.set_nonblocking(true)?;
    let mut come: Vec<Option<TcpStream>> = (1..launched.size).map(|_| None).collect();
    while let Some(missing) = come.iter().position(Option::is_none) {
        match listener.accept() {
            Ok((stream, _)) => {
                // A stranger is left alone: anyone may knock at a port.
                if let Ok((rank, stream)) = welcome(launched, stream)
                    && let Some(place @ None) = rank.checked_sub(1).and_then(|at| come.get_mut(at))
                {
                    *place = Some(stream);
                }
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                if Instant::now() > until {
                    let fact = format!("process {} did not come", missing + 1);
                    return Err(io::Error::new(io::ErrorKind::TimedOut, fact));
                }
                thread::sleep(PAUSE);
            }
            Err(e) => return Err(e),
        }
    }
    let come: Vec<_> = come.into_iter().enumerate().filter_map(|(at, one)| Some((at + 1, one?))).collect();
    // Nobody begins before all are there.
    for (_, one) in &come {
        let mut one: &TcpStream = one;
        one.write_all(&[MESSAGE])?;
    }
    Ok(come)
}

const OTHER_RUN: &str = "it is there, of another run or another version of the program";

/// Messages are short and waited for, and the other side may vanish without a word.
fn settle(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(STALLED))?;
    keep_alive(stream)
}

fn welcome(launched: &Launched, mut stream: TcpStream) -> io::Result<(usize, TcpStream)> {
    stream.set_nonblocking(false)?;
    settle(&stream)?;
    stream.set_read_timeout(Some(HELLO_PATIENCE))?;
    let (_, bytes) = read_frame(&mut stream, MOST_OF_HELLO)?;
    let hello: Hello = serde_json::from_slice(&bytes)?;
    if (hello.program.as_str(), &hello.run, hello.size) != (PROGRAM, &launched.run, launched.size) {
        stream.write_all(&[STRANGER])?;
        return Err(io::Error::new(io::ErrorKind::InvalidData, OTHER_RUN));
    }
    stream.set_read_timeout(None)?;
    Ok((hello.rank, stream))
}

/// Looks for process 0 until it is there, and waits with it for the others.
fn reach(launched: &Launched, place: (&str, u16), until: Instant) -> io::Result<TcpStream> {
    let Launched { rank, size, .. } = *launched;
    let hello = Hello { program: PROGRAM.into(), run: launched.run.clone(), rank, size };
    let hello = serde_json::to_vec(&hello)?;
    let left = || until.saturating_duration_since(Instant::now()).max(PAUSE);
    let once = || {
        let addresses: Vec<SocketAddr> = place.to_socket_addrs()?.collect();
        let mut tried = Err(io::Error::new(io::ErrorKind::NotFound, "the host has no address"));
        for address in addresses {
            tried = TcpStream::connect_timeout(&address, left().min(KNOCK));
            if tried.is_ok() {
                break;
            }
        }
        let mut stream = tried?;
        // A port that nobody listens on yet may be given to this very connection, which then is with itself.
        if stream.local_addr()? == stream.peer_addr()? {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        settle(&stream)?;
        write_frame(&stream, MESSAGE, &hello)?;
        stream.set_read_timeout(Some(left()))?;
        let mut word = [0];
        stream.read_exact(&mut word)?;
        if word != [MESSAGE] {
            return Err(io::Error::new(io::ErrorKind::InvalidData, OTHER_RUN));
        }
        stream.set_read_timeout(None)?;
        Ok(stream)
    };
    loop {
        match once() {
            Err(_) if Instant::now() < until => thread::sleep(PAUSE),
            tried => return tried,
        }
    }
}

fn write_frame(mut to: &TcpStream, kind: u8, bytes: &[u8]) -> io::Result<()> {
    let mut head = vec![kind];
    head.extend((bytes.len() as u64).to_le_bytes());
    to.write_all(&head)?;
    to.write_all(bytes)
}

fn read_frame(from: &mut impl Read, most: u64) -> io::Result<(u8, Vec<u8>)> {
    let (mut kind, mut length) = ([0], [0; 8]);
    from.read_exact(&mut kind)?;
    from.read_exact(&mut length)?;
    let length = u64::from_le_bytes(length);
    if length > most {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a frame that is too long"));
    }
    let mut bytes = Vec::new();
    from.take(length).read_to_end(&mut bytes)?;
    if bytes.len() as u64 != length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok((kind[0], bytes))
}

/// The same in all processes of one machine, in whatever containers they are, and in no others.
fn machine() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .or_else(|_| nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ranks::launcher::Launcher;

    fn launched(rank: usize, size: usize, port: u16, run: &str) -> Launched {
        let meeting = Some(("127.0.0.1".into(), port));
        Launched { by: Launcher::Torchrun, variable: "WORLD_SIZE", rank, size, meeting, run: run.into() }
    }

    /// A port that was free a moment ago.
    fn free_port() -> u16 {
        TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
    }

    const SOON: Duration = Duration::from_secs(20);

    /// Tells the test how a process ended, whose thread does no more.
    struct Told(Sender<End>);

    impl Ending for Told {
        fn end(&self, how: End) -> ! {
            let _ = self.0.send(how);
            loop {
                thread::park();
            }
        }
    }

    fn told() -> (Arc<dyn Ending>, Receiver<End>) {
        let (sender, ends) = channel();
        (Arc::new(Told(sender)), ends)
    }

    /// So many processes, each of them a thread that does `work`; what they gave, and how they ended.
    fn together<T: Send + 'static>(
        size: usize,
        work: fn(Sockets) -> T,
    ) -> (Vec<Receiver<T>>, Vec<Receiver<End>>) {
        let port = free_port();
        let one = |rank| {
            let ((ending, ends), (sender, given)) = (told(), channel());
            thread::spawn(move || {
                // The last comes first, and process 0 in the middle.
                thread::sleep(Duration::from_millis(if rank == 0 {
                    150
                } else {
                    100 * (size - rank) as u64
                }));
                let all = Sockets::join(&launched(rank, size, port, "r"), SOON, ending).unwrap();
                let _ = sender.send(work(all));
            });
            (given, ends)
        };
        (0..size).map(one).unzip()
    }

    #[test]
    fn what_one_says_all_have() {
        let (given, ends) = together(3, |all| {
            let mut bytes = if all.rank() == 0 { b"from 0".to_vec() } else { Vec::new() };
            all.broadcast(&mut bytes);
            let (mut sum, mut largest) = ([all.rank() as f64, 1.0], [-(all.rank() as f64)]);
            all.sum(&mut sum);
            all.largest(&mut largest);
            let here = all.gather_here(10 * all.rank() as u64);
            (bytes, sum, largest, here)
        });
        for (rank, given) in given.iter().enumerate() {
            let (bytes, sum, largest, here) = given.recv_timeout(SOON).unwrap();
            assert_eq!((bytes.as_slice(), sum, largest), (&b"from 0"[..], [3.0, 3.0], [0.0]));
            assert_eq!(here, (vec![0, 10, 20], rank));
        }
        // They end in order, whoever is first.
        assert!(ends.iter().all(|end| end.recv_timeout(Duration::from_millis(200)).is_err()));
    }

    #[test]
    fn where_one_breaks_off_all_end() {
        let (_, ends) = together(3, |all| {
            if all.rank() == 2 {
                all.abort(7);
            }
            // It computes, and asks nothing of the others.
            loop {
                thread::park();
            }
        });
        assert_eq!(ends[2].recv_timeout(SOON), Ok(End::Own(7)));
        for others in &ends[..2] {
            assert_eq!(others.recv_timeout(SOON), Ok(End::Aborted(7)));
        }
    }

    #[test]
    fn one_that_is_gone_without_a_word_is_noticed() {
        let (_, ends) = together(3, |all| {
            if all.rank() == 1 {
                all.peers[0].to.shutdown(std::net::Shutdown::Both).unwrap();
            }
            loop {
                thread::park();
            }
        });
        assert_eq!(ends[0].recv_timeout(SOON), Ok(End::Lost(1)));
        assert_eq!(ends[2].recv_timeout(SOON), Ok(End::Aborted(Kind::Resource as u8)));
    }

    #[test]
    fn one_that_ended_while_it_is_counted_on_is_lost() {
        let (_, ends) = together(2, |all| {
            if all.rank() == 0 {
                all.sum(&mut [1.0]);
            }
        });
        assert_eq!(ends[0].recv_timeout(SOON), Ok(End::Lost(1)));
    }

    #[test]
    fn strangers_are_left_alone_and_those_who_do_not_come_are_named() {
        let port = free_port();
        let waiting = thread::spawn(move || {
            let patience = Duration::from_secs(3);
            Sockets::join(&launched(0, 3, port, "r"), patience, told().0).err().map(|e| e.to_string())
        });
        let knock = || loop {
            match TcpStream::connect(("127.0.0.1", port)) {
                Ok(stream) => return stream,
                Err(_) => thread::sleep(PAUSE),
            }
        };
        knock().write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        // Another attempt's process, and one that comes in time.
        let tried = [(2, "another"), (1, "r")].map(|(rank, run)| {
            thread::spawn(move || {
                let joined = Sockets::join(&launched(rank, 3, port, run), Duration::from_secs(1), told().0);
                joined.err().map(|e| e.to_string())
            })
        });
        let [stranger, _] = tried.map(|one| one.join().unwrap().unwrap());
        assert!(stranger.contains("of another run"), "{stranger}");
        let error = waiting.join().unwrap().unwrap();
        assert!(error.contains("process 2 did not come"), "{error}");
        let nobody = Sockets::join(&launched(1, 2, free_port(), "r"), PAUSE, told().0).err().unwrap();
        assert!(nobody.to_string().contains("looked for process 0"), "{nobody}");
        let nowhere = Launched { meeting: None, ..launched(0, 2, port, "r") };
        let nowhere = Sockets::join(&nowhere, PAUSE, told().0).err().unwrap();
        assert!(matches!(nowhere, Error::Nowhere { .. }), "{nowhere}");
    }
}
