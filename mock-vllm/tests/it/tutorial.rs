//! The tutorial's two requests, in the forms that shells make of them.

/// `round1.txt` as every shell writes it.
pub(crate) const ROUND1: &str = r#"{"max_tokens":24,"messages":[{"content":"Hi, here's some system prompt: hi hi hi hi hi hi hi hi hi hi.For user 3, here are some other context: hi hi hi hi hi hi hi hi hi hi hi hi hi hi hi hi hi hi hi hi.I would like to test your intelligence. for this purpose I would like you to play zork. you can interact with the game by typing in commands. I will forward these commands to the game and type in any response. are you ready?","role":"user"}],"model":"/model/qwen","stream":true,"stream_options":{"include_usage":true},"temperature":0}"#;

/// `round2.txt` with every quote escaped, as it is meant.
pub(crate) const ROUND2_QUOTED: &str = r#"{"max_tokens":3,"messages":[{"content":"Hi, here's some system prompt: hi hi hi hi hi hi hi hi hi hi.For user 3, here are some other context: hi hi hi hi hi hi hi hi hi hi hi hi hi hi hi hi hi hi hi hi.I would like to test your intelligence. for this purpose I would like you to play zork. you can interact with the game by typing in commands. I will forward these commands to the game and type in any response. are you ready?","role":"user"},{"content":"Hi there! It looks like you're setting up a fun test. I'm ready to play Zork! You can","role":"assistant"},{"content":"% zork\nWelcome to Dungeon. This version created 11-MAR-91.\nYou are in an open field west of a big white house with a boarded\nfront door.\nThere is a small mailbox here.\n>","role":"user"},{"content":"Great!","role":"assistant"},{"content":"Opening the mailbox reveals:\n A leaflet.\n>","role":"user"}],"model":"/model/qwen","stream":true,"stream_options":{"include_usage":true},"temperature":0}"#;

/// `round2.txt` as bash writes it: the quotes of `you're` and `I'm` close and open the shell's own.
pub(crate) fn round2_bash() -> String {
    ROUND2_QUOTED.replace("you're", "youre").replace("I'm", "Im")
}

/// `round2.txt` as dash writes it: its echo turns `\n` into a line feed, which a JSON string may not contain.
pub(crate) fn round2_dash() -> String {
    round2_bash().replace("\\n", "\n")
}
