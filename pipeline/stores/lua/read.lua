-- after: fence, run, incarnation, opened, add, move
-- KEYS: lease, stream, books. ARGV: token, group, consumer, count, id ('>' for new entries, else own history after it), '1' where
-- replicas are waited for: that is until they have what this connection wrote last, so that reading history has to write, too.
-- Where something else wrote an entry under an id that does not fit, nobody could name it: it is moved to where it gets one that does.
local function read()
  local reply = redis.call('XREADGROUP', 'GROUP', ARGV[2], ARGV[3], 'COUNT', ARGV[4], 'STREAMS', KEYS[2], ARGV[5])
  local found, kept = reply and reply[1][2] or {}, {}
  for _, entry in ipairs(found) do
    if fits(entry[1]) then
      table.insert(kept, entry)
    else
      move(entry[1], entry[2], redis.call('HGET', KEYS[3], 'opened'))
    end
  end
  if #kept == #found then return reply end
  if #kept == 0 then return read() end -- a reply without entries would say that there are no more
  reply[1][2] = kept
  return reply
end
local reply = read()
if ARGV[5] == '>' then
  local entries = reply and reply[1][2] or {}
  if #entries < tonumber(ARGV[4]) then -- all there is: the count cannot drift
    local accepted, read = unpack(redis.call('HMGET', KEYS[3], 'accepted', 'read'))
    if (accepted or '0') ~= read then redis.call('HSET', KEYS[3], 'read', accepted or '0') end
  else
    local events = 0
    for _, entry in ipairs(entries) do
      local fields = entry[2] or {}
      for i = 1, #fields, 2 do
        local counted = (fields[i] == 'n' or fields[i] == 'm') and #fields[i + 1] < 10 and string.match(fields[i + 1], '^%d+$')
        if counted then events = events + tonumber(counted) end
      end
    end
    redis.call('HINCRBY', KEYS[3], 'read', string.format('%.0f', events))
  end
elseif ARGV[6] == '1' then
  redis.call('HINCRBY', KEYS[3], 'reread', 1)
end
return reply
