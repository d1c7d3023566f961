import java.io.DataInputStream;
import java.io.IOException;
import java.io.OutputStream;
import java.net.Socket;
import java.net.URI;
import java.nio.charset.StandardCharsets;

/**
 * The smallest participant in Java, with nothing but its standard library: it asks the agent
 * `research` a question, and takes one message out of its own inbox. No build, no manifest:
 *
 * <pre>STRATUM_NATS_URL=nats://127.0.0.1:4222 java Participant.java</pre>
 */
public final class Participant {
    private final OutputStream outgoing;
    private final DataInputStream incoming;
    private String reply = "";

    private Participant(Socket socket) throws IOException {
        outgoing = socket.getOutputStream();
        incoming = new DataInputStream(socket.getInputStream());
        write("CONNECT {\"verbose\":false,\"headers\":true,\"no_responders\":true}\r\n");
        write("SUB _INBOX.java.* 1\r\n");
    }

    public static void main(String[] arguments) throws IOException {
        URI server = URI.create(System.getenv("STRATUM_NATS_URL"));
        try (Socket socket = new Socket(server.getHost(), server.getPort())) {
            Participant nats = new Participant(socket);

            // Publish: stored when it is answered. The id makes sending it again harmless.
            String question = "{\"q\": \"java\"}";
            String id = "Nats-Msg-Id: java-1\r\n";
            System.out.println(nats.request("inbox.research.java.question", question, id));

            // Receive: one message of the inbox, a durable consumer with the agent's name.
            String inbox = """
                {"stream_name": "LOG", "config": {"name": "java", "durable_name": "java",
                 "ack_policy": "explicit", "filter_subjects": ["inbox.java.>"]}}""";
            nats.request("$JS.API.CONSUMER.CREATE.LOG.java", inbox, "");
            String next = "$JS.API.CONSUMER.MSG.NEXT.LOG.java";
            nats.publish(next, "_INBOX.java.next", "{\"batch\": 1}", "");
            System.out.println(nats.receive());
            nats.request(nats.reply, "+ACK", ""); // here it would be handled first
        }
    }

    private void write(String text) throws IOException {
        outgoing.write(text.getBytes(StandardCharsets.UTF_8));
    }

    private void publish(String subject, String reply, String payload, String headers)
            throws IOException {
        String head = "NATS/1.0\r\n" + headers + "\r\n";
        int size = (head + payload).getBytes(StandardCharsets.UTF_8).length;
        String line = "HPUB %s %s %d %d\r\n".formatted(subject, reply, head.length(), size);
        write(line + head + payload + "\r\n");
    }

    private String request(String subject, String payload, String headers) throws IOException {
        publish(subject, "_INBOX.java.answer", payload, headers);
        String answer = receive();
        if (answer.contains("\"error\"") || answer.contains("NATS/1.0 503")) {
            throw new IOException(subject + " was refused: " + answer);
        }
        return answer;
    }

    /** The next message: its headers and payload; `reply` is its reply subject. */
    @SuppressWarnings("deprecation") // readLine takes bytes for Latin-1: these lines are ASCII
    private String receive() throws IOException {
        while (true) {
            String line = incoming.readLine();
            if (line == null || line.startsWith("-ERR")) {
                throw new IOException("the server ended it: " + line);
            }
            String[] words = line.split(" ");
            if (words[0].equals("PING")) {
                write("PONG\r\n");
            } else if (words[0].endsWith("MSG")) { // its last word is the size of what follows
                reply = words[3];
                int size = Integer.parseInt(words[words.length - 1]);
                byte[] payload = incoming.readNBytes(size + 2);
                return new String(payload, 0, size, StandardCharsets.UTF_8);
            }
        }
    }
}
