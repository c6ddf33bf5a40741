from isolate.sandbox import Sandbox as Sandbox
